"""The server as a process: it starts where it can, and stops when it is asked to."""

import contextlib
import shutil
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
from tests.serve.running import events, serving, until


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


def test_a_second_ctrl_c_waits_for_nobody(trained: Path) -> None:
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
        (["x", "--rows", "5000"], "rows is 5000: give at most 4096."),
        (["x", "--timeout", "nan"], "timeout is nan: give a finite number."),
        (["x", "--host", ""], "host is empty: give an address"),
        (["x", "--precision", "tf32", "--device", "cpu"], "precision tf32 is a mode of CUDA's matrix units"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    cli: Callable[..., Outcome], run: Path, arguments: list[str], said: str
) -> None:
    outcome = cli("serve", *arguments, *([] if "--port" in arguments else ["--port", 0]))
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_a_folders_name_is_one_visible_line_to_clients(trained: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(trained, tmp_path / "x\n\x9b2J\u202ey"))
    with serving(named) as server:
        assert server.ask("GET", "/v1/models").json["data"][0]["id"] == "x \ufffd2J\ufffdy"


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


def test_a_token_that_no_header_can_carry_is_refused(
    cli: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERNIGHT_TOKEN", "pässwort")
    outcome = cli("serve", "x", "--host", "0.0.0.0", "--port", 0)
    assert outcome.code == 2
    assert "OVERNIGHT_TOKEN holds more than printable ASCII" in outcome.err


def test_a_folder_with_an_at_is_a_run_as_everywhere(run: Path) -> None:
    home = run.parent.parent / "me@home"
    home.mkdir()
    run.rename(home / "x")
    for name in ("me@home/x", "me@home/x@2"):
        with serving(name, cwd=home.parent) as server:
            assert server.complete(model="x", prompt="the", max_tokens=3).status == 200


def test_one_precision_after_another(trained: Path) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        with serving(trained, "--precision", precision) as server:
            assert server.complete(model="x", prompt="the", max_tokens=3, n=2).status == 200


def test_a_run_that_is_begun_anew_is_served_anew(run: Path) -> None:
    """Its checkpoints are then of lower steps than the one that is served."""
    aside = run.parent / "aside"
    (run / "checkpoints").rename(aside)
    (run / "checkpoints").mkdir()
    (aside / "step_00000004").rename(run / "checkpoints" / "step_00000004")
    asked = {"model": "x", "prompt": "the", "max_tokens": 1, "logprobs": 0, "seed": 1}
    with serving(run) as server:
        told = server.complete(**asked).json
        shutil.rmtree(run / "checkpoints" / "step_00000004")
        (aside / "step_00000001").rename(run / "checkpoints" / "step_00000001")
        until("the other weights", lambda: server.complete(**asked).json["choices"] != told["choices"])


def test_connections_that_stop_are_closed(trained: Path) -> None:
    """In a first request or a later one; the other states are tried in test_connections.py."""
    with serving(trained) as server, contextlib.ExitStack() as opened:
        head = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
        silent = []
        for sent in (b"", head, head + b"\r\n" + head, (head + b"\r\n") * 2):
            silent.append(opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 60)))
            silent[-1].sendall(sent)
        for one in silent:
            while one.recv(1000):  # the test's time limit is the server's
                pass


def test_the_dashboard_survives_what_it_cannot_read(run: Path) -> None:
    """A folder in the place of the records, for a while."""
    with serving(run) as server:
        connection = server.connect()
        connection.request("GET", "/events")
        followed = connection.getresponse()
        (run / "records.jsonl").rename(run / "aside")
        (run / "records.jsonl").mkdir()
        while b"cannot be read" not in followed.readline():
            pass
        (run / "records.jsonl").rmdir()
        (run / "aside").rename(run / "records.jsonl")
        with open(run / "records.jsonl", "a") as file:
            head = '{"kind": "event", "step": 4, "tokens": 256, "time": "2026-11-24T20:00:00.000Z", '
            file.write(head + '"name": "news", "detail": {}}\n')
        while b"news" not in followed.readline():
            pass
        connection.close()
