"""`overnight serve` as a process of its own, and plain HTTP to talk to it."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = {"Content-Type": "application/json"}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    said: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        with contextlib.closing(self.connect()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def complete(self, **fields: Any) -> Reply:
        return self.ask("POST", "/v1/completions", json.dumps(fields).encode(), **JSON)

    def stream(self, **fields: Any) -> http.client.HTTPResponse:
        """A stream that has begun; close it to go away."""
        connection = self.connect()
        connection.request("POST", "/v1/completions", json.dumps(fields | {"stream": True}).encode(), JSON)
        return connection.getresponse()


def events(answer: http.client.HTTPResponse) -> list[Any]:
    """All events of a stream, to its end; JSON where it is."""
    told = [line[6:] for line in answer.read().decode().split("\n\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in told]


@contextlib.contextmanager
def serving(
    model: str | Path, *options: str, cwd: Path | None = None, files: int = 0, **env: str
) -> Iterator[Server]:
    """Started, answering, and at the end stopped and waited for. files: how many it may open."""
    command = [
        sys.executable,
        "-m",
        "overnight",
        "serve",
        str(model),
        "--port",
        "0",
        "--device",
        "cpu",
        *options,
    ]
    if files:
        command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
    process = subprocess.Popen(
        command, cwd=cwd, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    said = ""
    try:
        while "/v1" not in said:
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"serve ended: {said} {process.communicate()[1]}")
            said += line
        found = re.search(r":(\d+)/", said)
        assert found
        yield Server(process, int(found[1]), said)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def until(what: str, ready: Any, seconds: float = 60) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
