"""A server in this process with an application made for the test, and raw connections to it.

Time is what `sweep` is given, so that no test waits for a limit to pass.
"""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvicorn

from overnight.serve import connections
from overnight.serve.connections import sweep
from overnight.serve.guard import Guard
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
