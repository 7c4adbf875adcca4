"""uvicorn around the application: it starts, it stops, and leaves nothing running.

The model has the main thread and the server one of its own, because OpenMP's workers spin for the thread
that came first: in another one, with as many workers as cores, GPT-2 124M is a sixth slower and a small model
takes twice as long. (libgomp counts the idle main thread too, finds one more than there are cores, and lets
its workers sleep between products.)
"""

import asyncio
import contextlib
import signal
import socket
import threading
from typing import Any

import uvicorn

from overnight.serve import connections
from overnight.serve.app import make_app
from overnight.serve.batcher import Batcher
from overnight.serve.fields import Limits
from overnight.serve.guard import LOOPBACK, Guard, hosts_of
from overnight.serve.live import Live
from overnight.serve.log import bounded, unhandled
from overnight.visible import one_line

QUEUE = 512  # connections waiting to be accepted
GRACE = 3  # seconds for answers that are under way


class Server(uvicorn.Server):
    """uvicorn's server with a longer queue: a connection that finds it full is retried after a second."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(QUEUE)  # asyncio gave the system the number that it accepts in one go


class Web(threading.Thread):
    """The server's thread. When it has ended, `batcher.work` returns."""

    def __init__(self, batcher: Batcher, listening: socket.socket, host: str, token: str, limits: Limits):
        super().__init__(name="web")
        self.batcher, self.listening, self.limits = batcher, listening, limits
        # With a token, names do not matter: whoever lets one point here does not know it.
        self.hosts = frozenset() if token else hosts_of({*LOOPBACK, host}, listening.getsockname()[1])
        self.token = token
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopping = asyncio.Event()
        self.server: uvicorn.Server | None = None
        self.error: BaseException | None = None
        self.asked = 0

    def run(self) -> None:
        try:
            asyncio.run(self.main())
        except BaseException as error:  # for the main thread to raise
            self.error = error
        finally:
            self.batcher.close()

    async def main(self) -> None:
        self.loop, batcher = asyncio.get_running_loop(), self.batcher
        self.loop.set_exception_handler(unhandled)
        live = Live(batcher.run) if batcher.run else None
        model = batcher.run.resolve().name if batcher.run else batcher.name
        model = one_line(model.encode("utf-8", "replace").decode())  # a folder's name need be no Unicode
        if live:
            await live.look()  # before anybody waits for it
        app = make_app(batcher, model, live, self.limits, self.stopping)
        guard = Guard(app, self.stopping, self.hosts, self.token)
        most = connections.most_connections()
        self.server = Server(connections.config(guard, most, lifespan="on", timeout_graceful_shutdown=GRACE))
        sweeping = asyncio.create_task(connections.sweep_often(self.server.server_state.connections))
        if not self.asked:
            await self.server.serve(sockets=[self.listening])
        sweeping.cancel()

    def stop(self, sign: int, frame: Any = None) -> None:
        """Ends open streams, and then the server; asked twice, it waits for no answer."""
        if self.server:
            self.server.force_exit = bool(self.asked)
            self.server.should_exit = True
        self.asked = self.asked or sign
        if self.loop:
            with contextlib.suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self.stopping.set)


def serve(batcher: Batcher, listening: socket.socket, host: str, token: str, limits: Limits) -> None:
    """Answer until SIGTERM or Ctrl-C, which is raised as KeyboardInterrupt. Called in the main thread."""
    web = Web(batcher, listening, host, token, limits)
    before = {sign: signal.signal(sign, web.stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        with bounded():
            try:
                web.start()
                batcher.work()
            finally:
                web.stop(web.asked)
                web.join()
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    if web.error:
        raise web.error
    if web.asked == signal.SIGINT:
        raise KeyboardInterrupt
