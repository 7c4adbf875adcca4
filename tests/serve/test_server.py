"""The server as a process: it starts where it can, and stops when it is asked to."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Outcome
from tests.serve.running import events, serving


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_stops_at_once_with_streams_open(trained: Path, sign: signal.Signals, code: int) -> None:
    with serving(trained, "--max-tokens", "1000000") as server:
        stream = server.stream(model="x", prompt="the", max_tokens=1_000_000, temperature=0)
        assert stream.read(10)
        dashboard = server.connect()
        dashboard.request("GET", "/events")
        followed = dashboard.getresponse()
        assert followed.read(10)
        told: list[Any] = []
        reading = threading.Thread(target=lambda: told.extend(events(stream)))
        reading.start()
        began = time.monotonic()
        server.process.send_signal(sign)
        assert server.process.wait(timeout=30) == code
        assert time.monotonic() - began < 15
        reading.join()
        assert told[-1]["error"]["message"] == "The server is stopping."
        assert followed.read().endswith(b"\n\n")
        _, err = server.process.communicate()
        assert "Traceback" not in err


def test_a_second_ctrl_c_changes_nothing(trained: Path) -> None:
    with serving(trained, "--max-tokens", "1000000") as server:
        assert server.stream(model="x", prompt="the", max_tokens=1_000_000, temperature=0).read(10)
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 130
        assert "Traceback" not in server.process.communicate()[1]


def test_a_port_that_is_taken_is_told_in_a_line(cli: Callable[..., Outcome], run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cli("serve", "x", "--port", port)
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"overnight: cannot listen on 127.0.0.1, port {port}: Address already in use."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["y"], "there is no run runs/y."),
        (["x@9"], "runs/x has no checkpoint of step 9."),
        (["hf:nowhere"], "nowhere"),
        (["x", "--port", "70000"], "port is 70000: give at most 65535."),
        (["x", "--host", "no such host"], "cannot listen on no such host"),
        (["x", "--rows", "-1"], "rows is -1: give 0 or more."),
        (["x", "--max-tokens", "0"], "max-tokens is 0: give 1 or more."),
    ],
)
def test_wrong_input_is_told_in_a_line(
    cli: Callable[..., Outcome], run: Path, arguments: list[str], said: str
) -> None:
    outcome = cli("serve", *arguments, *([] if "--port" in arguments else ["--port", 0]))
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_other_peoples_weights_have_a_playground_and_no_dashboard(
    cli: Callable[..., Outcome], run: Path
) -> None:
    assert cli("export", "x", "--to", "hf", "--out", "their").code == 0
    with serving("hf:their", cwd=Path.cwd()) as server:
        assert server.ask("GET", "/").headers["location"] == "/playground"
        page = server.ask("GET", "/playground").body.decode()
        assert ">Dashboard<" not in page
        assert server.ask("GET", "/events").status == 404
        assert server.complete(model="hf:their", prompt="the", max_tokens=3).status == 200


def test_without_starlette_the_remedy_is_told(run: Path) -> None:
    code = "import sys; sys.modules['starlette'] = None; from overnight import cli; "
    code += "sys.exit(cli.run(['serve', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'overnight[serve]'" in done.stderr
