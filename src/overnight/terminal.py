"""What people see while they wait: one line that renews itself on a terminal, plain lines elsewhere.

Every line goes through `visible`: text from files, documents and models is shown, never obeyed.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from overnight.visible import visible

PLAIN_EVERY = 10.0  # seconds between progress lines where they pile up (logs, pipes)


def duration(seconds: float) -> str:
    """'8 s', '3 min 20 s', '2 h 05 min'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """'1.1 MB' (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: float) -> str:
    """'512', '2.56 M', '10.0 B': tokens and the like, to three digits."""
    for unit, letter in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            digits = 2 if number < 9.995 * unit else 1 if number < 99.95 * unit else 0
            return f"{number / unit:.{digits}f}{letter}"
    return f"{number:.0f}"


def show(text: str, stream: TextIO) -> None:
    """Write at once. A reader that has gone away (`train ... | head`), a full disk behind `> log`, a closed
    terminal: they cost the output, not the work."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str = "") -> None:
    """Print lines to standard output at once, control characters made visible."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print lines to standard error, control characters made visible."""
    show(visible(text) + "\n", sys.stderr)


class Status:
    """A line of progress. `update` takes a function, so that a line nobody sees costs nothing."""

    def __init__(self, plain_every: float = PLAIN_EVERY):
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.plain_every = plain_every
        self._last = -float("inf") if self.live else time.monotonic() - plain_every + 2
        self._shown = False

    def update(self, line: Callable[[], str]) -> None:
        """Show the line if enough time has passed since the last."""
        now = time.monotonic()
        if now - self._last < (0.1 if self.live else self.plain_every):
            return
        self._last = now
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            show(f"\r\x1b[K{visible(line())[:width]}", sys.stderr)
            self._shown = True
        else:
            show(visible(line()) + "\n", sys.stderr)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        show(visible(line) + "\n", sys.stdout)

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            show("\r\x1b[K", sys.stderr)
            self._shown = False


class Silent(Status):
    """Shows nothing: what every rank but the first has."""

    def __init__(self) -> None:
        super().__init__()

    def update(self, line: Callable[[], str]) -> None: ...

    def say(self, line: str) -> None: ...
