"""Connections: slow requests, requests that come before the last answer, and more connections than fit."""

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.serve.running import Server, serving
from tests.serve.wire import GET, POST, guarded, hello, large, listening, nothing_goes_wrong, patient, until

from overnight.serve import connections
from overnight.serve.connections import BACKLOG, HEAD_WITHIN, SPARE, UNREAD

__all__ = ["nothing_goes_wrong"]

# A request that does not come


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: here\r\n"])
@pytest.mark.parametrize("answered", [0, 1, 3])
def test_a_request_that_stays_incomplete_is_waited_for_so_long(answered: int, sent: bytes) -> None:
    """The first of a connection and every later one."""

    async def attack() -> None:
        async with listening(hello) as wire:
            client = await wire.open()
            for _ in range(answered):
                await client.send(GET)
                await client.receive(b"hello")
            await client.send(sent)
            await until(lambda: len(client.protocol.head) == len(sent))
            wire.later(HEAD_WITHIN - 2)
            assert client.is_open
            wire.later(HEAD_WITHIN + 1)
            assert await client.closed() == b""
            assert wire.held == []

    asyncio.run(attack())


def test_bytes_that_trickle_in_do_not_extend_the_wait() -> None:
    async def attack() -> None:
        async with listening(hello) as wire:
            client = await wire.open(GET)
            await client.receive(b"hello")
            for i, byte in enumerate(GET[:-1]):
                await client.send(bytes([byte]))
                await until(lambda i=i: len(client.protocol.head) == i + 1)
                wire.later(i * (HEAD_WITHIN - 1) / len(GET))
                assert client.is_open
            wire.later(HEAD_WITHIN + 1)
            assert await client.closed() == b""

    asyncio.run(attack())


def test_a_body_that_goes_on_after_its_refusal_is_read_only_so_long() -> None:
    async def attack() -> None:
        async with listening(guarded(hello)) as wire:
            client = await wire.open(POST + b"Content-Length: 1000000000\r\n\r\n")
            assert b"413" in await client.receive(b"}")
            for _ in range(20):
                await client.send(bytes(4096))
            wire.later(HEAD_WITHIN + 1)
            await client.closed()
            assert wire.held == []

    asyncio.run(attack())


def test_one_that_is_answered_slowly_is_not_closed() -> None:
    async def ask() -> None:
        async with listening(patient) as wire:
            client = await wire.open(GET)
            await until(lambda: not client.protocol.waiting)
            wire.later(100 * UNREAD)
            assert client.is_open

    asyncio.run(ask())


# Requests that come before the answer to the one before them


@pytest.mark.parametrize("more", [GET, GET * 1000, b"G", b"\x00", b"A" * 200_000])
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("together", [True, False])
def test_what_comes_before_the_answer_is_not_kept(more: bytes, close: bytes, together: bool) -> None:
    async def attack() -> None:
        go = asyncio.Event()

        async def app(*arguments: Any) -> None:
            await go.wait()
            await hello(*arguments)

        async with listening(guarded(app)) as wire:
            first = GET[:-2] + close + b"\r\n"
            client = await wire.open(first + (more if together else b""))
            await until(lambda: not client.protocol.waiting)
            sending = asyncio.create_task(client.send(b"" if together else more))
            await until(lambda: not client.protocol.cycle.keep_alive)
            assert len(client.protocol.head) + len(client.protocol.conn.trailing_data[0]) <= 4096
            go.set()
            with contextlib.suppress(ConnectionError):
                await sending
            got = await client.closed()
            assert got.count(b"hello") <= 1
            assert wire.held == []

    asyncio.run(attack())


def test_one_answer_is_read_before_the_next_request_is_answered() -> None:
    async def attack() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            asked.append(scope["path"])
            await large(scope, receive, send)

        asked: list[str] = []
        async with listening(app) as wire:  # without a Guard, all of the body is in the buffer at once
            client = await wire.open(GET)
            await until(lambda: client.protocol.output.unread > 0)
            await client.send(GET)
            await until(lambda: not client.is_open)
            assert asked == ["/"]

    asyncio.run(attack())


# Too many


def test_room_is_made_by_closing_what_has_waited_longest() -> None:
    async def attack() -> None:
        async with listening(patient, most=4) as wire:
            busy = await wire.open(GET)
            await until(lambda: not busy.protocol.waiting)
            waiting = [await wire.open(sent) for sent in (b"GET", b"", GET[:-2])]
            for longest in list(waiting):
                waiting.append(await wire.open())
                assert await longest.closed() == b""
                assert len(wire.held) == 4
                assert waiting[-1].is_open
                assert busy.is_open

    asyncio.run(attack())


def test_where_none_waits_the_new_one_is_closed() -> None:
    async def attack() -> None:
        async with listening(patient, most=4) as wire:
            busy = [await wire.open(GET) for _ in range(4)]
            await until(lambda: not any(one.protocol.waiting for one in busy))
            new = socket.create_connection(("127.0.0.1", wire.port))
            new.setblocking(False)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(new, 10) == b""
            assert all(one.is_open for one in busy)
            new.close()

    asyncio.run(attack())


def test_room_is_made_by_closing_who_does_not_read() -> None:
    async def attack() -> None:
        async with listening(guarded(large), most=3) as wire:
            unread = [await wire.open(GET) for _ in range(3)]
            await until(lambda: all(one.protocol.flow.write_paused for one in unread))
            wire.later(0)
            for one in unread:  # as if nothing had been read for a while
                one.protocol.read_at -= 2 * connections.STALLED
            client = await wire.open(GET)
            assert client.is_open
            assert len(wire.held) == 3
            assert sum(one.is_open for one in unread) == 2
            await client.receive(bytes(1000))

    asyncio.run(attack())


def files_left(limit: tuple[int, int]) -> list[int]:
    """most_connections() in a process with a limit of open files, and that limit afterwards."""
    code = (
        "import resource; from overnight.serve import connections; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limit}); most = connections.most_connections(); "
        "print(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_connections_stay_below_the_limit_of_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most, soft = files_left((300, 300))
    assert 8 <= most <= soft - SPARE
    if hard == resource.RLIM_INFINITY or hard > 2000:
        most, soft = files_left((300, 2000))
        assert most == connections.MOST
        assert soft >= most + SPARE


def test_more_connections_than_files_do_not_end_the_service(trained: Path) -> None:
    """Each has had an answer, and has begun another request."""
    with serving(trained, files=280) as server:
        held = [half_open(server) for _ in range(400)]
        assert server.ask("GET", "/v1/models").status == 200
        for one in held:
            one.close()
        server.process.terminate()
        assert server.process.communicate()[1] == ""


def half_open(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), 60)
    connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    while not connection.recv(4096).endswith(b"}"):
        pass
    connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    return connection


def test_a_burst_of_connections_is_within_what_is_spare() -> None:
    assert 3 * BACKLOG < SPARE
