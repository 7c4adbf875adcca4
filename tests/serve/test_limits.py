"""Requests that take too long, are too many, or whose client has left."""

import asyncio
import contextlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.serve.running import events, serving, until

from overnight.data import tokens
from overnight.serve.completions import Completions
from overnight.serve.fields import Limits, parse
from overnight.serve.refusal import Refusal

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


def test_answers_count_until_they_are_read(trained: Path) -> None:
    """Of a large answer, the system takes only a part for a client that does not read."""
    with serving(trained) as server, contextlib.ExitStack() as held:
        fields = {"prompt": "the night " * 3000, "echo": True, "n": 32, "max_tokens": 0}
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(8):
            client = held.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", server.port))
            client.sendall(head.encode() + body)
            assert client.recv(12) == b"HTTP/1.1 200"
        assert server.complete(prompt="the", max_tokens=1).status == 429
        held.close()
        until("room", lambda: server.complete(prompt="the", max_tokens=1).status == 200)


def test_echoed_characters_of_all_answers_are_counted_together() -> None:
    unused: Any = None
    completions = Completions(unused, "x", Limits(echo=100), asyncio.Event())
    asked = parse(
        {"prompt": "the night", "echo": True, "n": 6}, "x", tokens.train_char(["the night"]), 16, Limits()
    )
    done = completions.hold(asked)
    with pytest.raises(Refusal, match="Too many prompts are being echoed") as raised:
        completions.hold(asked)
    assert raised.value.status == 429
    done()
    completions.hold(asked)
