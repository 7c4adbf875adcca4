"""Asked to stop: signals, the time limit and the death of a parent become a word that the loop reads.

SIGINT asks to save and leave (interrupted), twice to leave at once; SIGTERM, SIGUSR1 (Slurm's warning) and
SIGHUP ask to save and leave because the machine is wanted (preempted).
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from overnight.errors import INTERRUPTED, Preempted
from overnight.lock import try_lock

STOP_FOLDER = "OVERNIGHT_STOP_FOLDER"  # where `train --processes` and its ranks meet
WORD, LAUNCHER = "word", "launcher"  # files in there: what to do; locked as long as the launcher lives
NOW = "now"  # the word to leave without saving
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

    Before the first step nothing is lost by leaving at once, and a process that is alone does: SIGINT raises
    KeyboardInterrupt, the others Preempted. A rank never leaves alone, since the others would wait for it.
    After `begin` the word is remembered, for the loop to ask for.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.deadline = float("inf")
        self._at_once = not is_rank()
        self._began = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._caught) for number in signals()}
        if is_rank():
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
                self._leave("interrupted twice: the next start goes on from the last checkpoint")
            self.reason = "interrupted"
        elif self._at_once:
            raise Preempted
        else:
            self.reason = self.reason or "preempted"

    def _watch(self) -> None:
        """A rank's eye on those who started it. With torchrun gone it saves and leaves; with our launcher
        killed, or told so by it, it leaves at once."""
        parent, named = os.getppid(), os.environ.get(STOP_FOLDER)
        while not self._over.wait(WATCH_EVERY):
            if named:
                folder = Path(named)
                if is_free(folder / LAUNCHER):
                    self._leave("the launcher is gone: so is this rank")
                word = read(folder / WORD)
                if word == NOW:
                    self._leave("")
                self.reason = self.reason or word
            if os.getppid() != parent:
                self.reason = self.reason or "preempted"

    def _leave(self, why: str) -> None:
        """End this process between two instructions, as a kill would: what is on the disk is always whole."""
        if why:
            print(f"overnight: {why}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)


def read(word: Path) -> str:
    try:
        return word.read_text()
    except OSError:
        return ""


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock of that file any more."""
    try:
        with open(path, "r+b") as file:
            return try_lock(file)
    except OSError:
        return True
