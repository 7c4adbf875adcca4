"""Slow clients, greedy ones and those that never read: what each connection may cost.

The server runs in this process with applications made for the test; time is what `sweep` is given, so that
nothing here waits for a limit to pass.
"""

import asyncio
import contextlib
import gc
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.serve.running import Server, serving

from overnight.serve import connections
from overnight.serve.connections import BACKLOG, CLOSING, HEAD, HEAD_WITHIN, LINES, SPARE, UNREAD, sweep
from overnight.serve.guard import PIECE, Guard
from overnight.verbs.serve import bind

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
LARGE = 2 << 20  # bytes: more than the system takes for a client that does not read


class Wire:
    """A server with one application, and raw connections to it."""

    def __init__(self, server: uvicorn.Server, port: int):
        self.server, self.port = server, port

    @property
    def held(self) -> list[Any]:
        return list(self.server.server_state.connections)

    def later(self, seconds: float) -> None:
        """Sweep as if so much time had passed."""
        sweep(self.server.server_state.connections, asyncio.get_running_loop().time() + seconds)

    async def open(self, sent: bytes = b"", receive_buffer: int = 0) -> "Client":
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        address = sock.getsockname()
        await until(lambda: any(one.client == address for one in self.held))
        [protocol] = [one for one in self.held if one.client == address]
        client = Client(sock, protocol)
        await client.send(sent)
        return client


class Client:
    """One connection, and the server's side of it."""

    def __init__(self, sock: socket.socket, protocol: Any):
        self.sock, self.protocol = sock, protocol
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    async def receive(self, ending: bytes) -> bytes:
        """What comes, up to what ends so."""
        parts = b""
        while not parts.endswith(ending):
            part = await self.loop.sock_recv(self.sock, 65_536)
            assert part, f"closed after {parts[-300:]!r}"
            parts += part
        return parts

    async def closed(self) -> bytes:
        """What still comes until the server closes the connection."""
        parts = b""
        with contextlib.suppress(ConnectionResetError):
            while part := await self.loop.sock_recv(self.sock, 65_536):
                parts += part
        return parts

    @property
    def is_open(self) -> bool:
        return not self.protocol.transport.is_closing()


async def until(ready: Callable[[], bool]) -> None:
    """Let the server work until something is so."""
    async with asyncio.timeout(60):
        while not ready():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def listening(app: Any, most: int = 512) -> AsyncIterator[Wire]:
    with bind("127.0.0.1", 0) as sock:
        server = uvicorn.Server(connections.config(app, most, lifespan="off", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        port = sock.getsockname()[1]
        await until(lambda: server.started)
        try:
            yield Wire(server, port)
        finally:
            for one in list(server.server_state.connections):
                one.abort()
            server.should_exit = True
            await serving
            gc.collect()  # tasks whose errors nobody saw say so here


def guarded(app: Any) -> Guard:
    return Guard(app, asyncio.Event())


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def large(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def patient(scope: Any, receive: Any, send: Any) -> None:
    """Answers nothing until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.fixture(autouse=True)
def nothing_goes_wrong(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No client can make the server log an error."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


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


# Output that nobody reads


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


def test_an_answer_in_pieces_is_the_same_answer() -> None:
    async def ask() -> None:
        body = bytes(range(256)) * 1024

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


# Heads and bodies


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
