"""`overnight serve RUN`: a dashboard, a playground, OpenAI's completions."""

import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.checks import above_limits, at_least, not_finite
from overnight.errors import DONE, UserError, refuse
from overnight.verbs import Device, Precision

TOKEN = "OVERNIGHT_TOKEN"
SYSTEM_BUFFER = 65_536  # bytes of each direction of a connection


@dataclass(frozen=True)
class Serve:
    """A live dashboard of a run, a playground, and OpenAI's completions API (/v1). Ctrl-C ends it."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), even while it trains; hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own asks for a token: OVERNIGHT_TOKEN, or one is made.
    On 127.0.0.1, which every user of this machine reaches, OVERNIGHT_TOKEN is asked for if it is set."""
    port: int = 8000
    """0: any that is free."""
    device: Device = "auto"
    """Where to compute; beside a training on the same card, cpu disturbs it less."""
    precision: Precision = "auto"
    """Of matrix products."""
    tokenizer: str = ""
    """A tokenizer.json, for weights that come without one."""
    rows: int = 0
    """Texts computed together; 0: what memory allows, 32 at most."""
    max_tokens: int = 4096
    """Of one text, at most."""
    timeout: float = 600.0
    """Seconds for one request, at most."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        yield from not_finite(self)
        yield from above_limits(self)
        yield from at_least(self, "", 0, "port", "rows")
        yield from at_least(self, "", 1, "max_tokens", "timeout")
        if self.rows > 4096:
            yield f"rows is {self.rows}: give at most 4096."
        if not self.host:
            yield "host is empty: give an address, 0.0.0.0 for all of this machine's."
        if self.port > 65_535:
            yield f"port is {self.port}: give at most 65535."


def run(arguments: list[str]) -> int:
    wanted = parse(Serve, "overnight serve", arguments)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(
            "overnight serve needs Starlette and uvicorn: pip install 'overnight[serve]'"
        ) from None

    from overnight import world
    from overnight.serve.batcher import Batcher
    from overnight.serve.fields import Limits
    from overnight.serve.server import serve
    from overnight.terminal import say

    listening = bind(wanted.host, wanted.port)
    with listening, world.connect(wanted.device) as here:
        batcher = Batcher(wanted.model, here.device, wanted.precision, wanted.tokenizer, wanted.rows)
        token = os.environ.get(TOKEN, "")
        if not token and not is_loopback(listening.getsockname()[0]):
            token = secrets.token_urlsafe(24)
        if re.search(r"[^!-~]", token):
            raise UserError(f"{TOKEN} holds more than printable ASCII: give it letters and digits.")
        limits = Limits(tokens=wanted.max_tokens, seconds=wanted.timeout)
        port = listening.getsockname()[1]
        shown = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
        say(f"Serving {wanted.model}" + (f", {batcher.error}" if batcher.error else "") + ":")
        say(f"  http://{shown}:{port}/" + (f"?token={quote(token, safe='')}" if token else ""))
        say(f"  http://{shown}:{port}/v1   for OpenAI's clients" + (f", api_key {token}" if token else ""))
        serve(batcher, listening, shown, token, limits)
    return DONE


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address, as getsockname() gives it."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name != "nt":  # where it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these; without them, the system holds up to 10 MB for a client that never reads.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SYSTEM_BUFFER)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SYSTEM_BUFFER)
        try:
            listening.bind(address)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or "no such address"
        raise UserError(
            f"cannot listen on {host[:100]}, port {port}: {told}. Give another --port, or 0."
        ) from None
    return listening
