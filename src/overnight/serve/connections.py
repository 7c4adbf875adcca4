"""The limits of every connection, whatever its client does; `Protocol.overdue` covers all its states.

uvicorn alone waits without end for the rest of a later request, for a client that does not read its answer,
and for one that is being closed.
"""

import asyncio
import os
import re
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from overnight.serve.guard import HEADERS, PIECE
from overnight.serve.refusal import Refusal

HEAD = 16_384  # bytes of a request line and its headers
LINES = 100
READ = 4096  # bytes taken from a connection before the others get their turn
HEAD_WITHIN = 10  # seconds for a complete head, counted from the end of the answer before it
UNREAD = 60.0  # seconds in which a client reads at least STEP bytes of what is waiting for it
CLOSING = 30.0  # the same while its connection is being closed
UNREAD_AT_ALL = 600.0  # seconds without a moment at which it has read everything that was sent
STEP = 4096
STALLED = 5.0  # seconds after which a client that does not read makes room for another one
SWEEP_EVERY = 1.0  # seconds
MOST = 512  # connections at a time
BACKLOG = 32  # connections that asyncio accepts in one go, before it looks at any
SPARE = 3 * BACKLOG + 64  # file descriptors for connections that come and go, and for the run's files

END_OF_HEAD = re.compile(rb"\n\r?\n")
# What no head may contain. h11 0.16 looks for it in quadratic time: half a second for 16 kB of spaces.
ILLEGAL = re.compile(rb"[\x00\x0b\x0c]|\r(?!\n)")


class Output:
    """A transport that counts the bytes it was given."""

    def __init__(self, transport: asyncio.Transport):
        self.transport, self.given = transport, 0

    def write(self, data: bytes) -> None:
        self.given += len(data)
        self.transport.write(data)

    @property
    def unread(self) -> int:
        """Bytes that the system has not taken yet, because the client does not read."""
        return self.transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's side of one connection, with limits. most: connections at a time.

    A request that comes before the answer to the one before it has been read (pipelining) is not answered:
    the connection is closed after that answer. No client in use does this, and it would let a client that
    never reads ask for more and more.
    """

    def __init__(self, *args: Any, most: int = MOST, **options: Any):
        super().__init__(*args, **options)
        self.most = most
        self.head = bytearray()
        """What has come of the next request's head."""
        self.incoming = bytearray()
        self.read_at = self.caught_up_at = self.waiting_since = self.loop.time()
        """When the client last read, when it had read all, and since when the next request is waited for."""
        self.read = 0
        """Bytes that it had read then."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=PIECE)
        self.output = Output(transport)
        super().connection_made(self.output)  # type: ignore[arg-type]
        make_room(self.connections, self)  # type: ignore[arg-type]

    # Input

    def get_buffer(self, sizehint: int) -> bytearray:
        self.incoming = bytearray(READ)
        return self.incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.incoming[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Pass a body on as it comes, and a head once it is complete and within its limits."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            if self.output.unread:
                self.transport.close()
                return
            if not (data := self.whole_head(data)):
                return
        elif self.conn.their_state is not h11.SEND_BODY:
            self.close_after_answer()
            return
        super().data_received(data)
        if self.conn.their_state is not h11.SEND_BODY and self.conn.trailing_data[0]:
            self.close_after_answer()
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in self.headers or ()}:
            # A proxy may have believed the other length (RFC 9112, 6.1), and see another request here.
            self.close_after_answer()

    def whole_head(self, data: bytes) -> bytes:
        """A complete head and what came after it; nothing while it is incomplete, or when it was refused."""
        seen = len(self.head)
        self.head += data
        end = END_OF_HEAD.search(self.head, max(0, seen - 2))
        head = self.head[: end.end() if end else None]
        if len(head) > HEAD or head.count(b"\n") > LINES:
            self.refuse(
                Refusal(431, f"The headers have over {HEAD:,} bytes or {LINES} lines.", code="too_large")
            )
        elif end and ILLEGAL.search(head):
            self.send_400_response("")
        elif end:
            data, self.head = bytes(self.head), bytearray()
            return data
        return b""

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when h11 cannot read the input."""
        cycle = self.cycle
        if self.waiting or cycle.more_body:
            if cycle is not None:
                cycle.disconnected = True  # its answer would come after this one
                cycle.message_event.set()
            self.refuse(Refusal(400, "This is not a valid HTTP/1.1 request.", code="invalid_http"))
        else:
            self.close_after_answer()

    def refuse(self, refusal: Refusal) -> None:
        """Answer, in place of the application, what does not become a request; close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = refusal.response()
            fixed = {"Connection": "close", "Cache-Control": "no-store", **HEADERS}
            headers = [*response.raw_headers, *((k.encode(), v.encode()) for k, v in fixed.items())]
            reason = HTTPStatus(refusal.status).phrase.encode()
            for event in (
                h11.Response(status_code=refusal.status, headers=headers, reason=reason),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def close_after_answer(self) -> None:
        if self.waiting:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    # Limits

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    @property
    def waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now: float) -> bool:
        """Whether the connection has been for too long in the state that it is in."""
        unread = self.output.unread
        read = self.output.given - unread
        if not unread or read >= self.read + STEP:
            self.read_at, self.read = now, read
        if unread:
            self.waiting_since = now
            slow = now - self.read_at > (CLOSING if self.transport.is_closing() else UNREAD)
            return slow or now - self.caught_up_at > UNREAD_AT_ALL
        self.caught_up_at = now
        return self.waiting and now - self.waiting_since > HEAD_WITHIN

    def abort(self) -> None:
        """Close at once; what is unread is lost, and an application that still answers sees a disconnect."""
        self.connections.discard(self)
        self.output.transport.abort()


def make_room(connections: set[Protocol], new: Protocol) -> None:
    """Close one connection if there are too many: the one that has waited longest for a request, or else the
    one whose answer has been unread for longest, or else the new one."""
    if len(connections) <= new.most:
        return
    others = connections - {new}
    if waiting := [one for one in others if one.waiting and not one.output.unread]:
        min(waiting, key=lambda one: one.waiting_since).abort()
        return
    stalled = [one for one in others if one.output.unread and new.read_at - one.read_at > STALLED]
    min(stalled, key=lambda one: one.read_at, default=new).abort()


def sweep(connections: Iterable[Any], now: float) -> None:
    """Close what is overdue."""
    for one in list(connections):
        if one.overdue(now):
            one.abort()


async def sweep_often(connections: Iterable[Any]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_EVERY)
        sweep(connections, loop.time())


def most_connections() -> int:
    """How many connections there may be, after the limit of file descriptors was raised as far as needed and
    possible. Where it stays low, so many fewer are allowed that it is never reached."""
    try:
        import resource
    except ImportError:  # Windows, where select() takes 512
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = SPARE
    wanted = used + MOST + SPARE
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    return max(8, min(MOST, soft - used - SPARE))


def config(app: Any, most: int, **options: Any) -> uvicorn.Config:
    """uvicorn's, with these limits."""
    return uvicorn.Config(
        app, http=partial(Protocol, most=most), ws="none", access_log=False, server_header=False,  # type: ignore[arg-type]
        log_config=None, log_level="warning", backlog=BACKLOG, timeout_keep_alive=HEAD_WITHIN,
        # Heads come complete. What else h11 collects is the head of a chunk, and trailers.
        h11_max_incomplete_event_size=1024, **options,
    )  # fmt: skip
