"""Asked to stop: signals and the time limit become a word that the loop reads after each step."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

STOP_FILE = "OVERNIGHT_STOP_FILE"  # where `train --processes` leaves its ranks the word to stop


class Stop:
    """Catches SIGINT, SIGTERM and SIGUSR1 (Slurm's warning) while the `with` lasts.

    The first is remembered, so that the step is finished and saved; a second SIGINT leaves at once.
    """

    def __init__(self, max_minutes: float):
        self.reason = ""
        self.word = os.environ.get(STOP_FILE, "")
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")

    def __enter__(self) -> "Stop":
        names = ["SIGINT", "SIGTERM", "SIGUSR1"]  # the last is not on Windows
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._caught) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.reason == "interrupted":
                raise KeyboardInterrupt
            self.reason = "interrupted"
        else:
            self.reason = self.reason or "preempted"

    def asked(self) -> str:
        """Why this rank should stop: "interrupted", "preempted", or "" if it should not."""
        if not self.reason and time.monotonic() > self.deadline:
            self.reason = "preempted"
        if not self.reason and self.word and os.path.exists(self.word):
            self.reason = Path(self.word).read_text()
        return self.reason
