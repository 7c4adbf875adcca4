"""A run's records as columns, taken in as they are written: what the verdict and every figure are made of."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from overnight import records

Record = dict[str, Any]
MOST = 2**53  # of steps and tokens: beyond, a float is not exact, and no run will be
BEGINNINGS = ("start", "resume")  # events with which a process begins to train


class Columns:
    """Numbers that belong together, a row for each record; NaN for what is null or missing."""

    def __init__(self, *names: str):
        self._columns: dict[str, list[float]] = {name: [] for name in ("step", "tokens", "hours", *names)}

    def append(self, record: Record, hours: float) -> None:
        for name, column in self._columns.items():
            column.append(hours if name == "hours" else number(record.get(name)))

    def __getitem__(self, name: str) -> np.ndarray:
        """(rows,) float64."""
        return np.array(self._columns[name], dtype=np.float64)

    def most_alike(self, name: str) -> np.ndarray:
        """Which rows have the value that most rows have in `name`: (rows,) bool."""
        values = self[name]
        kinds, counts = np.unique(values, return_counts=True)
        return values == kinds[counts.argmax()] if len(kinds) else np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        return len(self._columns["step"])

    def last(self, name: str) -> float:
        """Of the newest row; NaN where that has none, or there is no row."""
        return self._columns[name][-1] if self._columns[name] else math.nan


def number(value: Any) -> float:
    """`value` if JSON had a number there, else NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    with contextlib.suppress(OverflowError):  # an integer beyond all floats, in a damaged file
        return float(value) if is_number else math.nan
    return math.nan


@dataclass
class Session:
    """One process's (or one torchrun's) share of a run."""

    began: datetime
    ended: datetime
    """When its newest record was written."""
    ranks: int
    hours_before: float
    """Trained by earlier sessions."""

    @property
    def hours(self) -> float:
        return max(0.0, (self.ended - self.began).total_seconds() / 3600)


@dataclass
class History:
    """Everything that a run recorded. `hours` of a row: how long the run had trained when it was written,
    without pauses between its processes, and without the work that a resume cut off."""

    run: Path
    damaged: int = 0
    """Lines that are no records."""
    train: Columns = field(default_factory=lambda: Columns(
        "loss", "lr", "grad_norm", "step_ms", "tokens_per_second", "mfu",
    ))  # fmt: skip
    val: Columns = field(default_factory=lambda: Columns("loss", "bits_per_byte", "val_tokens"))
    hellaswag: Columns = field(default_factory=lambda: Columns("acc", "acc_norm", "items"))
    styles: list[str] = field(default_factory=list)
    """How each HellaSwag was asked."""
    samples: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    _offset: int = 0
    _tail: bytes = b""

    def update(self) -> "History":
        """This history with what was written since; begun anew where a resume has cut the file back."""
        path = self.run / records.FILE
        try:
            file = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return self if not self._offset else History(self.run)
        with file:
            file.seek(self._offset - len(self._tail))
            if file.read(len(self._tail)) != self._tail:
                return History(self.run).update()
            lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):  # being written
            lines.pop()
        self._take(lines)
        return self

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._offset, self._tail = self._offset + len(line), line
            record = records.parse(line)
            if record and all(0 <= record[name] <= MOST for name in ("step", "tokens")):
                self._add(record)
            else:
                self.damaged += 1

    def _add(self, record: Record) -> None:
        hours = self._clock(record)
        match record["kind"]:
            case "train":
                self.train.append(record, hours)
            case "val":
                self.val.append(record, hours)
            case "hellaswag":
                self.hellaswag.append(record, hours)
                self.styles.append(str(record.get("style")))
            case "sample" if all(isinstance(record.get(name), str) for name in ("prompt", "text")):
                self.samples.append(record)
            case "event":
                self.events.append(record | {"hours": hours})

    def _clock(self, record: Record) -> float:
        """Hours trained when `record` was written."""
        try:
            now = datetime.fromisoformat(record["time"])
            now = now if now.tzinfo else now.astimezone()
        except (KeyError, TypeError, ValueError, OverflowError):
            return self.hours
        begins = record["kind"] == "event" and record["name"] in BEGINNINGS
        if begins or not self.sessions:
            ranks = ranks_of(record["detail"]) if begins else 1
            self.sessions.append(Session(now, now, ranks, self.hours))
        newest = self.sessions[-1]
        newest.ended = max(newest.ended, now)
        return self.hours

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.train.last("step")) if len(self.train) else 0

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return int(self.train.last("tokens")) if len(self.train) else 0

    @property
    def hours(self) -> float:
        """Trained so far."""
        return self.sessions[-1].hours_before + self.sessions[-1].hours if self.sessions else 0.0

    @property
    def rank_hours(self) -> float:
        """The same, times the ranks of each session."""
        return sum(session.hours * session.ranks for session in self.sessions)

    @property
    def last_time(self) -> datetime | None:
        """When the newest record was written."""
        return self.sessions[-1].ended if self.sessions else None

    def events_named(self, *names: str) -> list[Record]:
        return [event for event in self.events if event["name"] in names]

    def count(self, name: str) -> int:
        """How often something happened. Steps that a resume takes again tell again what happened in them."""
        happened = self.events_named(name)
        return len(happened) if name == "resume" else len({event["step"] for event in happened})


def ranks_of(detail: dict[str, Any]) -> int:
    """How many ranks the event that begins a session tells of."""
    world = detail.get("world")
    size = world.get("size") if isinstance(world, dict) else None
    return size if type(size) is int and size > 0 else 1
