"""Asked to stop: signals, the time limit and the death of a parent become a word that the loop reads.

SIGINT asks to save and leave (interrupted), twice to leave at once; SIGTERM, SIGUSR1 (Slurm's warning) and
SIGHUP ask to save and leave because the machine is wanted (preempted).
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from overnight.errors import FAILURE, INTERRUPTED, LostRank, Preempted, UserError
from overnight.lock import try_lock

STOP_FOLDER = "OVERNIGHT_STOP_FOLDER"  # where `train --processes` and its ranks meet
# Files in there: what to do; locked as long as the launcher lives; why ranks that begin again need not.
WORD, LAUNCHER, FINAL = "word", "launcher", "final"
NOW = "now"  # the word to leave without saving
WORDS = ("interrupted", "preempted", NOW)
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for every rank
WATCH_EVERY = 0.2  # seconds


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

    They are remembered, for the loop to ask for. Between `ready` and `begin`, before the first step, nothing
    is lost by leaving at once, and a process that is alone does: SIGINT raises KeyboardInterrupt, the others
    Preempted. (Not before that: exceptions do not get through imports.) A rank never leaves alone, since the
    others would wait for it.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.deadline = float("inf")
        self._at_once = False
        self._began = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._caught) for number in signals()}
        if is_rank():
            named = os.environ.get(STOP_FOLDER)
            folder = Path(named) if named else None
            if folder and not folder.is_dir():
                leave(FAILURE, "")  # begun by a torchrun that was killed meanwhile
            threading.Thread(target=self._watch, args=(os.getppid(), folder), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ready(self) -> None:
        """Everything is imported. Raises what was asked for meanwhile."""
        self._at_once = not is_rank()
        if self._at_once and self.reason:
            raise KeyboardInterrupt if self.reason == "interrupted" else Preempted

    def begin(self, max_minutes: float) -> None:
        """Steps are about to be made. max_minutes: since the process began; 0: no limit."""
        self._at_once = False
        if max_minutes:
            self.deadline = self._began + 60 * max_minutes

    def asked(self) -> str:
        """Why this rank should stop: "interrupted", "preempted", or "" if it should not."""
        if time.monotonic() > self.deadline:
            self.reason = self.reason or "preempted"
        return self.reason

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._at_once:
                raise KeyboardInterrupt
            if self.reason == "interrupted":
                leave(INTERRUPTED, "interrupted twice: the next start goes on from the last checkpoint.")
            self.reason = "interrupted"
        elif self._at_once:
            raise Preempted
        else:
            self.reason = self.reason or "preempted"

    def _watch(self, parent: int, folder: Path | None) -> None:
        """A rank's eye on those who started it. With torchrun gone it saves and leaves; with our launcher
        killed it leaves at once, as if killed with it, so that the next start finds the way free."""
        while not self._over.wait(WATCH_EVERY):
            orphan = os.getppid() != parent
            if folder:
                if is_free(folder / LAUNCHER):
                    leave(FAILURE, "the launcher is gone, so this rank ends.")
                word = read(folder / WORD)
                if word == NOW or (orphan and not folder.is_dir()):  # said and taken away meanwhile
                    leave(INTERRUPTED, "")
                self.reason = self.reason or word
            if orphan:
                self.reason = self.reason or "preempted"


def leave(code: int, why: str) -> NoReturn:
    """End this process between two instructions, as a kill would: what is on the disk is always whole."""
    try:  # not `print`: a signal may have come inside one, and nobody may be there to read
        os.write(2, f"overnight: {why}\n".encode() if why else b"")
    finally:
        os._exit(code)


def read(path: Path) -> str:
    """What a file in the launcher's folder says; nothing where it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""


def is_free(path: Path) -> bool:
    """Whether the process that locked a file is gone. A file that is not there says nothing."""
    try:
        with open(path, "r+b") as file:
            return try_lock(file)
    except OSError:
        return False


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
