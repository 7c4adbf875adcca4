"""What a client makes the server log neither fills a disk nor commands a terminal."""

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest
from tests.serve.running import serving

from overnight.serve.log import EVERY, LONGEST, bounded, log, unhandled


def test_records_of_one_kind_are_written_once_and_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("overnight.serve.log.time.monotonic", lambda: now)
    with bounded():
        for _ in range(10_000):
            log.error("%s broke", "this")
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        log.error("something else")
        now += EVERY
        log.error("%s broke", "that")
    assert capsys.readouterr().err.splitlines() == [
        "this broke",
        "Invalid HTTP request received.",
        "something else",
        "that broke",
        "(and 9,999 times since the last such line)",
    ]


def test_a_client_that_asks_for_a_websocket_is_no_reason_to_install_anything(trained: Path) -> None:
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}
    with serving(trained) as server:
        with contextlib.closing(server.connect()) as connection:
            connection.request("GET", "/v1/models", None, asked)
            assert connection.getresponse().status == 200
        server.process.terminate()
        assert server.process.communicate()[1] == ""


def test_a_traceback_is_visible_text_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    with bounded():
        try:
            raise RuntimeError("\x1b[2J\r" + "x" * 10 * LONGEST)
        except RuntimeError:
            log.exception("following %s", "run\x1b]0;title\x07")
    said = capsys.readouterr().err
    assert said.startswith("following run\u241b]0;title\u2407\nTraceback")
    assert not {"\x1b", "\x07", "\r"} & set(said)
    assert len(said) < LONGEST + 100


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def accept() -> None:
        error = OSError(24, "Too many open files")
        context = {"message": "socket.accept() out of system resource", "exception": error}
        for _ in range(1000):
            unhandled(asyncio.get_running_loop(), context)

    with bounded():
        asyncio.run(accept())
    assert capsys.readouterr().err == (
        "socket.accept() out of system resource: [Errno 24] Too many open files\n"
    )


def test_a_mistake_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        unhandled(asyncio.get_running_loop(), {"message": "in a callback", "exception": KeyError("x")})

    with bounded():
        asyncio.run(fail())
    assert capsys.readouterr().err == "in a callback\nKeyError: 'x'\n"


def test_loggers_are_as_before_afterwards() -> None:
    before = (log.handlers, log.propagate)
    with bounded():
        assert log.handlers != before[0]
    assert (log.handlers, log.propagate) == before
