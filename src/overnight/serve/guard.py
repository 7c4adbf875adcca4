"""Who may ask, and what: every request passes here before anything else looks at it.

A page of another site that the reader has open must not be able to use this server: neither through a name
that it lets point at 127.0.0.1 (DNS rebinding: the Host is not ours), nor by sending forms or fetches across
sites (the Origin is not ours, or the body is not declared as JSON, which a form cannot do).
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse

from overnight.serve.refusal import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 262_144  # bytes
BODY_WITHIN = 10.0  # seconds
MOST_REQUESTS = 256  # at a time whose answers have not begun
PIECE = 32_768  # bytes of an answer that are handed on at a time
COOKIE = "overnight_token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of plotly's styles: page.py says why they may be inline.
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class Guard:
    """Wraps the application. stopping: set when the server ends. hosts: what the Host may be, port included;
    empty: anything, where a token is asked for."""

    app: App
    stopping: asyncio.Event
    hosts: frozenset[str] = frozenset()
    token: str = ""
    working: set[int] = field(default_factory=set, init=False)
    """The requests whose answers have not begun. Those that are being sent cost little: connections.py bounds
    them, and so nobody who does not read keeps others from being answered."""

    def __post_init__(self) -> None:
        self.cookie = hmac.digest(self.token.encode(), COOKIE.encode(), "sha256").hex()
        """What a browser keeps in place of the token: whatever the token is, it needs no quotes."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here
        number = id(scope)
        shorten = without_body if scope["method"] == "HEAD" else in_pieces
        send = self.counting(with_headers(shorten(send)), number)
        self.working.add(number)
        try:
            self.check(scope)
            if redirect := self.signed_in(scope):
                await redirect(scope, receive, send)
                return
            body = await self.body(scope, receive)
            if body is not None:
                await self.app(scope, replay(body, receive), send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        except asyncio.CancelledError:
            if not self.stopping.is_set():  # else it is we who give up, and nobody needs a traceback
                raise
        finally:
            self.working.discard(number)

    def counting(self, send: Send, number: int) -> Send:
        async def sending(message: Message) -> None:
            self.working.discard(number)
            await send(message)

        return sending

    def check(self, scope: Message) -> None:
        """Raise Refusal where the request must not be served."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.hosts and (host not in self.hosts or len(headers.getlist("host")) > 1):
            raise Refusal(403, "This server answers to its own address only.", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refusal(403, "Pages of other sites may not use this server.", code="wrong_origin")
        if foreign(headers):
            raise Refusal(403, "Pages of other sites may not use this server.", code="wrong_site")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "GET and POST only.", code="wrong_method")
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refusal(415, "Send JSON, and say so: Content-Type: application/json.")
        if self.token and not self.knows(scope, headers):
            raise Refusal(401, "A token is needed: Authorization: Bearer TOKEN.", code="invalid_api_key")
        if len(self.working) > MOST_REQUESTS:
            raise Refusal(503, "Too many requests at a time: try again.", code="overloaded")

    def knows(self, scope: Message, headers: Headers) -> bool:
        """Whether the request has the token: as a bearer, in our cookie or, once, in the address."""
        bearer = headers.get("authorization", "")
        told = [bearer[7:]] if bearer[:7].lower() == "bearer " else []
        pairs = [(one, self.token) for one in [*told, *in_address(scope)]]
        pairs += [(one, self.cookie) for one in in_cookies(headers)]
        # Each in constant time, so that answers tell nothing of how much of a guess was right.
        return sum(hmac.compare_digest(one.encode(), right.encode()) for one, right in pairs) > 0

    def signed_in(self, scope: Message) -> RedirectResponse | None:
        """A browser that came with the token in the address keeps it in a cookie, out of sight."""
        if not (self.token and scope["method"] == "GET" and in_address(scope)):
            return None
        response = RedirectResponse("/" + quote(scope["path"].lstrip("/")), 303)  # never //another.host
        response.set_cookie(COOKIE, self.cookie, httponly=True, samesite="strict")
        return response

    async def body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body, if it is not too large and does not take too long; None: the client has gone."""
        too_large = Refusal(413, f"The body is larger than {LARGEST_BODY:,} bytes.", code="too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:18]) > LARGEST_BODY:
            raise too_large
        parts = bytearray()
        try:
            async with asyncio.timeout(BODY_WITHIN):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts += message.get("body", b"")
                    if len(parts) > LARGEST_BODY:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(parts)
        except TimeoutError:
            raise Refusal(408, "The body did not arrive in time.", code="timeout") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what comes after it: that the client has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def without_body(send: Send) -> Send:
    """Complete the answer to a HEAD request with its headers: the client has all of it then and may send the
    next request, and a stream sees that it has ended."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
        await asyncio.sleep(0)

    return sending


def in_pieces(send: Send) -> Send:
    """Hand a body on piece by piece. uvicorn waits before each while the client does not read, so that a
    connection never holds more than two of them. Between pieces, other connections get their turn: to one
    that is lost, uvicorn lets an endless stream be sent without a pause."""

    async def sending(message: Message) -> None:
        body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
        while len(body) > PIECE:
            await send({**message, "body": body[:PIECE], "more_body": True})
            await asyncio.sleep(0)
            body = body[PIECE:]
        await send({**message, "body": body, "more_body": more} if "body" in message else message)
        await asyncio.sleep(0)

    return sending


def foreign(headers: Headers) -> bool:
    """Whether a browser says that another site's page asks. A link that the reader follows is not one.

    Other sites' images and scripts send no Origin; current browsers send Sec-Fetch-Site.
    """
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    return (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document")


def in_address(scope: Message) -> list[str]:
    """The tokens of ?token=TOKEN."""
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100).get("token", [])
    except ValueError:
        return []


def in_cookies(headers: Headers) -> list[str]:
    """The values of our cookie, of which another server at this address may have set more. In linear time:
    http.cookies takes quadratic time on Pythons before 3.11.10, 3.12.5 (CVE-2024-7592)."""
    cookies = (one.partition("=") for line in headers.getlist("cookie") for one in line.split(";"))
    return [value.strip() for name, _, value in cookies if name.strip() == COOKIE]


def hosts_of(names: Iterable[str], port: int) -> frozenset[str]:
    """What the Host header, in lower case, may be for a server on `port`."""
    suffixes = (f":{port}", "") if port == 80 else (f":{port}",)
    return frozenset(name.lower() + suffix for name in names for suffix in suffixes)
