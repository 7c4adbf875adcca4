"""What people see while they wait: one line that renews itself on a terminal, plain lines elsewhere.

Text from documents and models is shown, never obeyed: control characters are made visible.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

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


def visible(text: str) -> str:
    """`text` with control characters (but newline and tab) replaced by pictures, so none reaches the
    terminal as a command: escape becomes U+241B. Direction overrides become U+FFFD."""
    return text.translate(_VISIBLE)


_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(128, 160), 65533)
_VISIBLE |= dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), 65533)


def show(text: str, stream: TextIO) -> None:
    """Write at once. A reader that has gone away (`train ... | head`), a full disk behind `> log`, a closed
    terminal: they cost the output, not the work."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
            show(f"\r\x1b[K{line()[:width]}", sys.stderr)
            self._shown = True
        else:
            show(line() + "\n", sys.stderr)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        show(line + "\n", sys.stdout)

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
