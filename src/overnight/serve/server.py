"""uvicorn around the application: it starts, it stops, and leaves nothing running."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from overnight.serve.app import make_app
from overnight.serve.batcher import Batcher
from overnight.serve.fields import Limits
from overnight.serve.guard import LOOPBACK, Guard, hosts_of
from overnight.serve.live import Live

GRACE = 3  # seconds for answers that are under way
HEADERS_WITHIN = 10.0  # seconds


class Server(uvicorn.Server):
    """Ends open streams when it is asked to stop, so that it can."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event):
        super().__init__(config)
        self.stopping, self.loop = stopping, asyncio.get_running_loop()
        self.asked: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signals again when it is done; how this command ends is for cli.py to say.
        self.force_exit = self.asked is not None  # asked twice: no answer is waited for
        self.asked = self.asked or sig
        self.should_exit = True
        self.loop.call_soon_threadsafe(self.stopping.set)


class Protocol(H11Protocol):
    """Closes a connection whose first request does not come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADERS_WITHIN, self.overdue)

    def overdue(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def serve(batcher: Batcher, listening: socket.socket, host: str, token: str, limits: Limits) -> None:
    """Answer until SIGTERM or Ctrl-C, which is raised again as KeyboardInterrupt."""

    async def main() -> int | None:
        stopping = asyncio.Event()
        live = Live(batcher.run) if batcher.run else None
        model = batcher.run.resolve().name if batcher.run else batcher.name
        model = model.encode("utf-8", "replace").decode()  # a folder's name need be no Unicode
        if live:
            await live.look()  # before anybody waits for it
        app = make_app(batcher, model, live, limits, stopping)
        # With a token, names do not matter: whoever lets one point here does not know it.
        hosts = hosts_of({*LOOPBACK, host}, listening.getsockname()[1]) if not token else frozenset[str]()
        config = uvicorn.Config(
            Guard(app, stopping, hosts, token), http=Protocol, log_level="warning", access_log=False,
            server_header=False, ws="none", lifespan="on", timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=65_536,
        )  # fmt: skip
        server = Server(config, stopping)
        await server.serve(sockets=[listening])
        return server.asked

    if asyncio.run(main()) == signal.SIGINT:
        raise KeyboardInterrupt
