"""Answers that a client reads slowly or not at all: how much of them is kept, and for how long."""

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.serve.wire import GET, LARGE, guarded, large, listening, nothing_goes_wrong, until

from overnight.serve.completions import Events
from overnight.serve.connections import CLOSING, STEP, UNREAD, UNREAD_AT_ALL
from overnight.serve.guard import PIECE

__all__ = ["nothing_goes_wrong"]


def test_an_answer_that_is_not_read_is_dropped_and_its_application_ends() -> None:
    async def attack() -> None:
        ended = asyncio.Event()

        async def app(*arguments: Any) -> None:
            await large(*arguments)
            ended.set()

        async with listening(guarded(app)) as wire:
            client = await wire.open(GET)
            await until(lambda: client.protocol.flow.write_paused)
            assert client.protocol.output.unread <= 2 * PIECE
            wire.later(0)
            wire.later(UNREAD - 1)
            assert client.is_open
            assert not ended.is_set()
            wire.later(UNREAD + 1)
            await asyncio.wait_for(ended.wait(), 60)
            assert wire.held == []
            assert len(await client.closed()) < LARGE

    asyncio.run(attack())


@pytest.mark.parametrize(("close", "limit"), [(b"", UNREAD), (b"Connection: close\r\n", CLOSING)])
def test_the_end_of_an_answer_is_not_kept_for_ever(close: bytes, limit: float) -> None:
    """The application has finished, and uvicorn counts the connection as idle, or closes it and waits."""

    async def attack() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not wire.held[0].output.unread:
                await send({"type": "http.response.body", "body": bytes(4096), "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"end"})

        async with listening(app) as wire:
            client = await wire.open(GET[:-2] + close + b"\r\n")
            await until(lambda: client.protocol.cycle is not None and client.protocol.waiting)
            assert client.protocol.output.unread > 0
            wire.later(0)
            wire.later(limit - 1)
            assert len(wire.held) == 1
            wire.later(limit + 1)
            assert wire.held == []
            await client.closed()

    asyncio.run(attack())


def test_a_client_that_reads_slowly_but_steadily_gets_everything() -> None:
    async def ask() -> None:
        async with listening(guarded(large)) as wire:
            client = await wire.open(GET)
            got, minutes = 0, 0
            while got < LARGE:
                part = await client.loop.sock_recv(client.sock, 65_536)
                assert part
                got += len(part)
                if got > (minutes + 1) * (LARGE // 8):  # 260 kB a minute
                    minutes += 1
                    wire.later(minutes * (UNREAD - 1))
            assert minutes >= 7

    asyncio.run(ask())


def test_a_client_that_reads_a_little_now_and_then_is_closed_in_the_end() -> None:
    """Whatever is sent to it meanwhile; it reads enough not to be taken for one that does not read."""

    async def attack() -> None:
        async with listening(guarded(large)) as wire:
            client = await wire.open(GET, receive_buffer=4096)
            await until(lambda: client.protocol.flow.write_paused)
            wire.later(0)
            for seconds in range(50, int(UNREAD_AT_ALL), 50):
                given = client.protocol.output.given - client.protocol.output.unread
                while client.protocol.output.given - client.protocol.output.unread < given + STEP:
                    assert await client.loop.sock_recv(client.sock, 4096)
                    await asyncio.sleep(0)
                await until(lambda: client.protocol.output.unread > 0)
                wire.later(seconds)
                assert client.is_open
            wire.later(UNREAD_AT_ALL + 1)
            assert wire.held == []
            await client.closed()

    asyncio.run(attack())


def test_a_stream_that_is_not_read_ends_its_source() -> None:
    """However much the source has to say: it is asked for no more than the client and the system take."""

    async def attack() -> None:
        ended = asyncio.Event()

        async def source() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield bytes(100_000)
            finally:
                ended.set()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await Events(source())(scope, receive, send)

        async with listening(guarded(app)) as wire:
            client = await wire.open(GET)
            await until(lambda: client.protocol.flow.write_paused)
            wire.later(0)
            wire.later(UNREAD - 1)
            assert client.is_open
            assert client.protocol.output.unread <= 2 * PIECE + 100
            wire.later(UNREAD + 1)
            await asyncio.wait_for(ended.wait(), 60)

    asyncio.run(attack())


def test_an_answer_in_pieces_is_the_same_answer() -> None:
    async def ask() -> None:
        body = random.Random(1).randbytes(262_144)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body[:100_000], "more_body": True})
            await send({"type": "http.response.body", "body": body[100_000:]})

        async with listening(guarded(app)) as wire:
            for _ in range(2):
                client = await wire.open(GET)
                assert (await client.receive(body[-500:])).partition(b"\r\n\r\n")[2] == body
            head = await wire.open(GET.replace(b"GET", b"HEAD"))
            assert (await head.receive(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    asyncio.run(ask())


def test_clients_that_never_read_cost_little_each() -> None:
    """The file is shared, and of every connection at most two pieces are in memory."""

    async def attack() -> None:
        async with listening(guarded(large)) as wire:
            clients = [await wire.open(GET) for _ in range(50)]
            await until(lambda: all(one.protocol.flow.write_paused for one in clients))
            assert max(one.protocol.output.unread for one in clients) <= 2 * PIECE + 100

    asyncio.run(attack())
