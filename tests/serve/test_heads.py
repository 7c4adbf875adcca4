"""Heads and bodies that no client library would send are refused at little cost."""

import asyncio
import contextlib
import random
from typing import Any

import pytest
from tests.serve.wire import GET, POST, guarded, hello, listening, nothing_goes_wrong

from overnight.serve.connections import HEAD, LINES

__all__ = ["nothing_goes_wrong"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Cookie: " + b"a" * HEAD, b"431"),
        (b"Cookie: " + b"a" * 10 * HEAD, b"431"),
        (b"a:\r\n" * LINES, b"431"),
        (b"a:" + b" " * (HEAD // 2) + b"\x00", b"400"),
        (b"a: \x0b", b"400"),
        (b"a: b\r c", b"400"),
        (b"no colon", b"400"),
    ],
)
@pytest.mark.parametrize("answered", [0, 1])
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_heads_are_bounded(head: bytes, status: bytes, answered: int, step: int) -> None:
    async def attack() -> None:
        async with listening(hello) as wire:
            client = await wire.open(GET * answered)
            await client.receive(b"hello" if answered else b"")
            sent = GET[:-2] + head + b"\r\n\r\n"
            with contextlib.suppress(ConnectionError):  # it need not read to the end
                for begin in range(0, len(sent), step):
                    await client.send(sent[begin : begin + step])
            got = await client.closed()
            assert got == b"" or got.startswith(b"HTTP/1.1 " + status)
            assert got or len(sent) > HEAD
            assert wire.held == []

    asyncio.run(attack())


def test_the_largest_head_that_is_allowed_is_answered() -> None:
    async def ask() -> None:
        async with listening(guarded(hello)) as wire:
            client = await wire.open(GET[:-2] + b"Cookie: " + b"a; " * ((HEAD - 100) // 3) + b"\r\n\r\n")
            assert (await client.receive(b"hello")).startswith(b"HTTP/1.1 200")

    asyncio.run(ask())


def test_whitespace_that_a_regular_expression_would_rescan_is_never_matched() -> None:
    """h11 takes half a second for each of these; a hundred are nothing in linear time."""

    async def attack() -> None:
        async with listening(hello) as wire:
            for _ in range(100):
                client = await wire.open(GET[:-2] + b"a:" + b" " * (HEAD - 100) + b"\x00\r\n\r\n")
                await client.closed()

    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(attack(), 30))


def echo(collected: list[bytes]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        collected.append((await receive())["body"])
        await hello(scope, receive, send)

    return guarded(app)


def test_a_body_in_tiny_chunks_arrives_whole() -> None:
    async def ask() -> None:
        bodies: list[bytes] = []
        async with listening(echo(bodies)) as wire:
            client = await wire.open(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            await client.send(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n")
            await client.receive(b"hello")
            assert bodies == [b"a" * 10_000]

    asyncio.run(ask())


@pytest.mark.parametrize(
    "body",
    [
        b"1;" + b"x" * 100_000,
        b"1;" + b" " * 1000 + b"\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 10_000,
        b"0\r\na:" + b" " * 1000 + b"\x00\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFFFFFFFF\r\n",
        b"1\r\nabc",
        b"-1\r\n",
    ],
)
def test_chunks_that_are_none_end_the_connection(body: bytes) -> None:
    async def attack() -> None:
        bodies: list[bytes] = []
        async with listening(echo(bodies)) as wire:
            client = await wire.open(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await client.send(body)
            got = await client.closed()
            assert got == b"" or got.startswith(b"HTTP/1.1 400")
            assert bodies == []
            assert wire.held == []

    asyncio.run(attack())


@pytest.mark.parametrize("length", [0, 5, 500])
def test_a_connection_is_closed_after_a_request_with_two_lengths(length: int) -> None:
    """What a proxy took for the body can be the beginning of a request of somebody else."""

    async def attack() -> None:
        bodies: list[bytes] = []
        async with listening(echo(bodies)) as wire:
            lengths = f"Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            client = await wire.open(POST + lengths)
            await client.send(b"3\r\nabc\r\n0\r\n\r\n")
            got = await client.closed()
            assert got.startswith(b"HTTP/1.1 200")
            assert got.endswith(b"hello")
            assert bodies == [b"abc"]
            assert wire.held == []

    asyncio.run(attack())


def test_a_client_that_asks_whether_to_go_on_is_refused_before_it_sends_its_body() -> None:
    async def ask() -> None:
        bodies: list[bytes] = []
        async with listening(echo(bodies)) as wire:
            expect = b"Expect: 100-continue\r\n"
            client = await wire.open(POST + expect + b"Content-Length: 5\r\n\r\n")
            await client.receive(b"100 Continue\r\n\r\n")
            await client.send(b"12345")
            await client.receive(b"hello")
            assert bodies == [b"12345"]
            client = await wire.open(POST + expect + b"Content-Length: 500000\r\n\r\n")
            assert (await client.receive(b"}")).startswith(b"HTTP/1.1 413")

    asyncio.run(ask())


def test_no_bytes_break_the_server() -> None:
    """Requests with a few bytes changed, doubled, dropped or replaced."""
    draw = random.Random(20)
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    sound = [
        GET,
        POST + b"Content-Length: 3\r\n\r\nabc",
        chunked,
        GET[:-2] + b"Upgrade: x\r\n\r\n",
        GET + GET,
    ]
    odd = [b"\r", b"\n", b"\0", b" ", b":", b"\xff", b"HTTP/1.0", b"Connection: close\r\n", b"\r\n\r\n"]

    def broken() -> bytes:
        data = draw.choice(sound)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data) + 1)
            data = data[:at] + draw.choice([*odd, data[at : at + 9] * 2]) + data[at + draw.randint(0, 3) :]
        return data

    async def attack() -> None:
        async with listening(echo([])) as wire:
            for _ in range(500):
                client = await wire.open()
                with contextlib.suppress(ConnectionError):
                    await client.send(broken())
                    await asyncio.sleep(0)
                client.sock.close()
            client = await wire.open(GET)
            await client.receive(b"hello")

    asyncio.run(attack())
