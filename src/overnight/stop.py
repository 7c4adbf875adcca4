"""Requests to stop: signals, the time limit and the death of a parent become a reason that the loop polls.

SIGINT asks to save and leave (interrupted), twice to leave at once; SIGTERM, SIGUSR1 (Slurm's warning) and
SIGHUP ask to save and leave because the machine is wanted (preempted).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from overnight.errors import FAILURE, INTERRUPTED, LostRank, Preempted, UserError
from overnight.launcher_folder import launcher_is_gone
from overnight.terminal import show
from overnight.visible import visible

STOP_FOLDER = "OVERNIGHT_STOP_FOLDER"  # where `train --processes` and its ranks meet
# Files in there: what to do; why ranks that begin again need not.
WORD, FINAL = "word", "final"
NOW = "now"  # the word to leave without saving
WORDS = ("interrupted", "preempted", NOW)
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for every rank
WATCH_EVERY = 0.2  # seconds
ONE_CTRL_C = 1.0  # seconds within which a rank may get the same SIGINT again
SAVED_FIRST = "the checkpoint is saved first. Ctrl-C twice leaves at once, without saving."


# Reasons as numbers that ranks add up; of several that are given, the first counts.
REASONS = ("changed", "interrupted", "preempted", "time")


def as_numbers(reason: str) -> list[float]:
    """What a rank contributes to the sum over all ranks."""
    return [float(reason == one) for one in REASONS]


def agreed(sums: Sequence[float]) -> str:
    """The reason that all ranks act on, from the sums of `as_numbers`; "" where none was given."""
    return next((reason for reason, count in zip(REASONS, sums, strict=True) if count), "")


def signals() -> list[signal.Signals]:
    """Those that ask a training to stop, as far as this system has them and the user did not switch them
    off (nohup ignores SIGHUP)."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [one for one in known if one is signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return UNDER_TORCHRUN in os.environ


class Stop:
    """Catches the signals while the `with` lasts, from the first moment of `train` on.

    A thread receives them, because Python's own handlers wait until the main thread has come out of whatever
    it computes: a backward pass can take minutes. So they are acknowledged at once, and remembered for the
    loop to poll. Between `ready` and `begin`, before the first step, nothing is lost by leaving at once, and
    a process that is alone does: SIGINT raises KeyboardInterrupt, the others Preempted. (Not before that:
    exceptions do not get through imports.) A rank never leaves alone, since the others would wait for it.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.deadline = float("inf")
        self._at_once = False
        self._interrupted_at: float | None = None
        self._began = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._handle) for number in signals()}
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        if is_rank():
            named = os.environ.get(STOP_FOLDER)
            folder = Path(named) if named else None
            if folder and not folder.is_dir():
                leave(FAILURE, "")  # begun by a torchrun that was killed meanwhile
            threading.Thread(target=self._watch, args=(os.getppid(), folder), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._sender.close()  # which ends the thread

    def ready(self) -> None:
        """Everything is imported. Raises what was asked for meanwhile."""
        self._at_once = not is_rank()
        self._leave_at_once()

    def begin(self, max_minutes: float) -> None:
        """Steps are about to be made. Raises what `ready` raises. max_minutes: since the process began; 0: no
        limit."""
        self._leave_at_once()
        self._at_once = False
        if max_minutes:
            self.deadline = self._began + 60 * max_minutes

    def _leave_at_once(self) -> None:
        if self._at_once and self.reason:
            raise KeyboardInterrupt if self.reason == "interrupted" else Preempted

    def urgent(self) -> str:
        """Why this rank should stop at once: "interrupted", "preempted", or "" if it should not."""
        return self.reason

    def asked(self) -> str:
        """The same, or "time" where the time limit is reached: then what was begun is finished first, so that
        every process makes progress."""
        return self.reason or ("time" if time.monotonic() > self.deadline else "")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """Python's handler, in the main thread."""
        if self._at_once:
            raise KeyboardInterrupt if number == signal.SIGINT else Preempted

    def _listen(self) -> None:
        """Receive the numbers of signals, as the system delivers them."""
        with self._receiver:
            while numbers := self._receiver.recv(64):
                for number in numbers:
                    if number in self._before:
                        self._receive(number)

    def _receive(self, number: int) -> None:
        reason = "interrupted" if number == signal.SIGINT else self.reason or "preempted"
        if self._at_once:  # the handler acts on it, as soon as the main thread comes out of what it computes
            first, self.reason = not self.reason, reason
            if first:
                acknowledge("there is nothing to save yet.")
        elif number == signal.SIGINT and self._interrupted_before():
            leave(INTERRUPTED, "interrupted twice: the next start resumes from the last checkpoint.")
        else:
            self._ask(reason)

    def _interrupted_before(self) -> bool:
        """Whether this SIGINT is the second. One Ctrl-C reaches a rank more than once: from the terminal, and
        from torchrun, which passes it on. Our launcher counts for its ranks and leaves them a word."""
        now, before = time.monotonic(), self._interrupted_at
        self._interrupted_at = now
        if os.environ.get(STOP_FOLDER) and is_rank():
            return False
        return before is not None and (now - before > ONE_CTRL_C or not is_rank())

    def _ask(self, reason: str) -> None:
        """Set the reason; say so the first time, on the first rank."""
        first, self.reason = not self.reason, reason
        if first and os.environ.get("RANK", "0") == "0":
            acknowledge(SAVED_FIRST)

    def _watch(self, parent: int, folder: Path | None) -> None:
        """A rank's eye on those who started it. With torchrun gone it saves and leaves; with our launcher
        killed it leaves at once, as if killed with it, so that the next start finds the way free."""
        while not self._over.wait(WATCH_EVERY):
            orphan = os.getppid() != parent
            if folder:
                if launcher_is_gone(folder):
                    leave(FAILURE, "the launcher is gone, so this rank ends.")
                word = read(folder / WORD)
                if word == NOW or (orphan and not folder.is_dir()):  # said and taken away meanwhile
                    leave(INTERRUPTED, "")
                if word and not self.reason:
                    self.reason = word  # the launcher has said so
            if orphan and not self.reason:
                self._ask("preempted")


def acknowledge(what: str) -> None:
    """Say at once that a request to stop has come."""
    end_of_line = "\r\x1b[K" if sys.stderr.isatty() else ""
    show(f"{end_of_line}overnight: stopping: {what}\n", sys.stderr)


def leave(code: int, why: str) -> NoReturn:
    """End this process between two instructions, as a kill would: what is on the disk is always whole."""
    try:  # not `print`: a signal may have come inside one, and nobody may be there to read
        os.write(2, f"overnight: {visible(why)}\n".encode() if why else b"")
    finally:
        os._exit(code)


def read(path: Path) -> str:
    """What a file in the launcher's folder says; nothing where it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def final_errors() -> Iterator[None]:
    """What a rank finds wrong, as opposed to what befalls it, is wrong for all and each time: ranks that
    --max-restarts begins again see that and leave."""
    folder = os.environ.get(STOP_FOLDER)
    final = Path(folder) / FINAL if folder and is_rank() else None
    if final and (code := read(final)):
        leave(int(code), "")
    try:
        yield
    except UserError as error:
        if final and not isinstance(error, LostRank):
            with contextlib.suppress(OSError):
                final.write_text(str(error.code))
        raise
