"""hf:gpt2 from the hub: a local server that speaks as the hub does to huggingface_hub."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[str]:
    """Serves `resolve` of some repositories, each a folder; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            folder = repositories.get(repository)
            code = "RepoNotFound" if folder is None else "EntryNotFound"
            if folder is not None and revision not in ("main", COMMIT):
                code = "RevisionNotFound"
            elif folder is not None and (folder / name).is_file():
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hash(name) & 0xFFFFFFFF:08x}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)
                return
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            if folder is not None:
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def overnight(*arguments: str, home: Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads the environment when imported."""
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"} | more
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        if name not in more:
            environment.pop(name, None)
    command = [sys.executable, "-m", "overnight", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


SAMPLE = ("sample", "hf:gpt2", "--length", "3", "--device", "cpu")
GONE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.mark.parametrize("shards", ["50GB", "1MB"])
def test_from_the_hub_once_and_then_without_a_network(
    theirs: Callable[..., Any], tmp_path: Path, shards: str
) -> None:
    theirs().save_pretrained(tmp_path / "repo", max_shard_size=shards)
    with hub({"gpt2": tmp_path / "repo"}) as endpoint:
        first = overnight(*SAMPLE, home=tmp_path / "home", endpoint=endpoint)
    assert (first.returncode, first.stderr) == (0, "")
    again = overnight(*SAMPLE, home=tmp_path / "home", endpoint=GONE)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    offline = overnight(*SAMPLE, home=tmp_path / "home", endpoint=GONE, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)


def test_what_cannot_be_had_is_said_in_few_lines(hf_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((hf_folder / "config.json").read_text())
    with hub({"gpt2": tmp_path / "empty"}) as endpoint:
        cases = [
            (overnight(*SAMPLE, home=home, endpoint=endpoint), "hf:gpt2 has no safetensors"),
            (overnight("sample", "hf:gpt2-xl", home=home, endpoint=endpoint), "no repository gpt2-xl"),
            (overnight("sample", "hf:gpt2@v9", home=home, endpoint=endpoint), "has no revision v9"),
            (
                overnight(*SAMPLE, home=tmp_path / "new", endpoint=GONE, HF_HUB_OFFLINE="1"),
                "not in the cache",
            ),
        ]
    for outcome, message in cases:
        assert outcome.returncode == 2, outcome.stderr
        assert message in outcome.stderr
        assert len(outcome.stderr.splitlines()) <= 3


def test_fine_tuning_records_the_commit(hf_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the night is long and the model learns one word after another. " * 30)
    data, run = str(tmp_path / "data"), tmp_path / "run"
    prepared = overnight(
        "prepare", f"text:{text}", "--out", data, "--workers", "1", home=tmp_path, endpoint=GONE
    )
    assert prepared.returncode == 0
    options = "--model.n-layer 2 --model.n-head 2 --model.n-embd 8 --model.block-size 8 --batch-tokens 32"
    command = ("train", "finetune-shakespeare", "--data", data, "--run", str(run), "--steps", "2")
    with hub({"gpt2": hf_folder}) as endpoint:
        tuned = overnight(
            *command, *options.split(), "--sample.length", "4", "--device", "cpu",
            home=tmp_path / "home", endpoint=endpoint,
        )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    assert json.loads((run / "config.json").read_text())["init_from"] == f"hf:gpt2@{COMMIT}"
