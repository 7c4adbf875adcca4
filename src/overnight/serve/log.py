"""What the server writes to standard error: bounded, and without control characters."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from overnight.visible import visible

EVERY = 10.0  # seconds between two records of one kind
LONGEST = 10_000  # characters of one, traceback included
# What uvicorn says of a client that asks for a WebSocket: that one should install a library.
MISLEADING = ("No supported WebSocket library", "Unsupported upgrade request")
NAMES = ("uvicorn", "asyncio", "overnight.serve")

log = logging.getLogger("overnight.serve")


class Bounded(logging.StreamHandler[Any]):
    """Writes one record of a kind every ten seconds, with the number of those between: no client can fill a
    disk with the errors that it causes."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[Any, tuple[float, int]] = {}
        """Kind -> (when the last one was written, how many have been left out since)."""

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(MISLEADING):
            return
        kind = (record.name, str(record.msg), record.exc_info and record.exc_info[0])
        now = time.monotonic()
        written, left_out = self.kinds.get(kind, (now - EVERY, 0))
        if now - written < EVERY:
            self.kinds[kind] = (written, left_out + 1)
            return
        if len(self.kinds) > 100:
            self.kinds.clear()
        self.kinds[kind] = (now, 0)
        record.left_out = left_out
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        text = visible(super().format(record))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]}\n[...]\n{text[-LONGEST // 2 :]}"
        left_out = getattr(record, "left_out", 0)
        return text + (f"\n(and {left_out:,} times since the last such line)" if left_out else "")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Send the server's logs to standard error through one Bounded handler."""
    handler = Bounded()
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. What the system refuses, such as one more file, is one line."""
    error = context.get("exception")
    if error is None or isinstance(error, OSError):
        log.error("%s: %s", context["message"], error or "no details")
    else:
        log.error("%s", context["message"], exc_info=error)
