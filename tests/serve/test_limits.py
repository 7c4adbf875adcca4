"""Requests that take too long, are too many, or whose client has left."""

import contextlib
import json
import signal
from pathlib import Path

from tests.serve.running import events, serving, until

ENDLESS = 1_000_000  # tokens: minutes of work


def test_a_client_that_goes_away_ends_its_work(trained: Path) -> None:
    """On one row, the next text can only begin when the one before has ended."""
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        for leave in ("stream", "whole"):
            if leave == "stream":
                stream = server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0)
                assert stream.read(10)
                stream.close()
            else:
                connection = server.connect()
                body = json.dumps(
                    {"model": "x", "prompt": "the", "max_tokens": ENDLESS, "temperature": 0}
                ).encode()
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                connection.close()
            assert server.complete(model="x", prompt="the", max_tokens=5).status == 200


def test_a_request_has_an_end(trained: Path) -> None:
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS), "--timeout", "1") as server:
        reply = server.complete(model="x", prompt="the", max_tokens=ENDLESS, temperature=0)
        assert (reply.status, reply.json["error"]["code"]) == (400, "timeout")
        told = events(server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0))
        assert told[-1]["error"]["code"] == "timeout"
        assert server.complete(model="x", prompt="the", max_tokens=5).status == 200


def test_more_than_can_wait_are_sent_away(trained: Path) -> None:
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        streams = [
            server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0, n=32) for _ in range(8)
        ]
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
        assert reply.headers["retry-after"] == "1"
        for stream in streams:
            stream.close()
        until("room", lambda: server.complete(model="x", prompt="the", max_tokens=5).status == 200)


def test_many_that_come_at_once_are_counted_before_they_begin(trained: Path) -> None:
    """All of them wait for the server, which was stopped; it does not let in more than it said."""
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        server.process.send_signal(signal.SIGSTOP)
        connections = [server.connect() for _ in range(12)]
        body = json.dumps({"model": "x", "prompt": "the", "max_tokens": ENDLESS, "temperature": 0, "n": 32})
        for connection in connections:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            connection.sock.settimeout(0.5)
        server.process.send_signal(signal.SIGCONT)
        statuses = []
        for connection in connections:
            with contextlib.suppress(TimeoutError):
                statuses.append(connection.getresponse().status)
        assert statuses == [429] * 4
        for connection in connections:
            connection.close()
