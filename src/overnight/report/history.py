"""A run's records as columns, taken in as they are written: what the verdict and every figure are made of.

The file may be a stranger's: memory grows with the numbers in it at most, and time with its length.
"""

import contextlib
import math
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from overnight import records
from overnight.files import DEEPEST, deeper_than, open_regular
from overnight.record_lines import LONGEST_LINE, parse
from overnight.visible import one_line

Record = dict[str, Any]
MOST = 2**53  # of steps and tokens: beyond, a float is not exact, and no run will be
LARGEST = 1e100  # number: the square of a larger one is not a float
MOST_RANKS = 1_000_000
LONGEST_TIME = 1e9  # seconds, 30 years: of a step, or of a process
BEGINNINGS = ("start", "resume")  # events with which a process begins to train
KEPT = 16 << 20  # bytes of lines, of events and of samples each; a run of a month has 1 MB of either
TAIL = 1 << 16  # bytes before the end of what was read, by which a file that was cut back is noticed


class Columns:
    """Numbers that belong together, a row for each record; NaN for what is null or missing."""

    def __init__(self, *names: str):
        self._columns = {name: array("d") for name in ("step", "tokens", "hours", *names)}

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
    """`value` if JSON had a number there that one can calculate with, else NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= LARGEST else math.nan


class Newest:
    """The newest records of a kind, as many as KEPT bytes of lines; how many older ones there were."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Record]] = deque()
        self._bytes = self.left_out = 0

    def append(self, record: Record, size: int) -> None:
        self._kept.append((size, record))
        self._bytes += size
        while self._bytes > KEPT:
            self._bytes -= self._kept.popleft()[0]
            self.left_out += 1

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self._kept)

    def __len__(self) -> int:
        return len(self._kept)


@dataclass
class Session:
    """One process's (or one torchrun's) share of a run.

    Its clock is `elapsed` of the newest event, which is seconds of a clock that nobody sets, and the steps
    since. Records of earlier versions have the time of steps only. Wall times may jump, and are not used.
    """

    ranks: int = 1
    hours_before: float = 0.0
    """Trained by earlier sessions."""
    seconds: float = 0.0
    began_at: float = 0.0
    """`elapsed` of its first event: a run that went back to an earlier checkpoint has the same process."""

    def take(self, record: Record) -> None:
        """Move the clock on to when `record` was written; it never goes back."""
        if record["kind"] == "train":
            self.seconds += seconds(record.get("step_ms")) / 1000
        elif record["kind"] == "event":
            self.seconds = max(self.seconds, seconds(record.get("elapsed")) - self.began_at)

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def seconds(value: Any) -> float:
    """A length of time, or of thousandths; 0 for what is none."""
    found = number(value)
    return found if 0 <= found <= 1000 * LONGEST_TIME else 0.0


@dataclass
class History:
    """Everything that a run recorded. `hours` of a row: how long the run had trained when it was written,
    without pauses between its processes, and with the work that a resume cut off as far as events tell."""

    run: Path
    damaged: int = 0
    """Lines that are no records."""
    train: Columns = field(default_factory=lambda: Columns(
        "loss", "lr", "grad_norm", "step_ms", "tokens_per_second", "mfu",
    ))  # fmt: skip
    val: Columns = field(default_factory=lambda: Columns("loss", "bits_per_byte", "val_tokens"))
    hellaswag: Columns = field(default_factory=lambda: Columns("acc", "acc_norm", "items"))
    style: str = ""
    """How the newest HellaSwag was asked."""
    samples: Newest = field(default_factory=Newest)
    events: Newest = field(default_factory=Newest)
    session: Session | None = None
    """The newest."""
    last_time: datetime | None = None
    """When the newest record was written, by the clock of its machine: for a reader, not for arithmetic."""
    grew_at: float | None = None
    """When a look found records that the one before had not, on this process's monotonic clock."""
    _rank_hours_before: float = 0.0
    _offset: int = 0
    _tail: bytes = b""
    _in_long_line: bool = False

    def update(self) -> "History":
        """This history with what was written since; begun anew where a resume has cut the file back. Raises
        OSError where that is no file, or too large to be a run's records."""
        path = self.run / records.FILE
        try:
            file = open_regular(path, records.LARGEST)
        except FileNotFoundError:
            return self if not self._offset else History(self.run)
        with file:
            file.seek(self._offset - len(self._tail))
            if file.read(len(self._tail)) != self._tail:
                return History(self.run).update()
            before = self._offset
            for line in self._lines(file):
                record = parse(line)
                if record and is_sound(record):
                    self._add(record, len(line))
                else:
                    self.damaged += 1
        if 0 < before < self._offset:
            self.grew_at = time.monotonic()
        return self

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """The lines from here on. One that is too long is given up where it becomes so; its rest is passed
        over, part by part, now and as it is written."""
        while part := file.readline(LONGEST_LINE):
            whole = part.endswith(b"\n")
            if not whole and len(part) < LONGEST_LINE and not self._in_long_line:
                return  # being written
            self._offset, self._tail = self._offset + len(part), part[-TAIL:]
            if not self._in_long_line:
                yield part if whole else b""
            self._in_long_line = not whole

    def _add(self, record: Record, size: int) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            self.last_time = datetime.fromisoformat(record["time"]).astimezone(UTC)
        is_event = record["kind"] == "event"
        if (begins := is_event and record["name"] in BEGINNINGS) or self.session is None:
            self._rank_hours_before, hours_before = self.rank_hours, self.hours
            began_at = seconds(record.get("elapsed")) if begins else 0.0
            self.session = Session(ranks_of(record), hours_before, began_at=began_at)
        self.session.take(record)
        match record["kind"]:
            case "train":
                self.train.append(record, self.hours)
            case "val":
                self.val.append(record, self.hours)
            case "hellaswag":
                self.hellaswag.append(record, self.hours)
                self.style = one_line(str(record.get("style"))[:100])
            case "sample" if all(isinstance(record.get(name), str) for name in ("prompt", "text")):
                self.samples.append(record, size)
            case "event":
                self.events.append(record | {"hours": self.hours}, size)

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
        return self.session.hours_before + self.session.hours if self.session else 0.0

    @property
    def rank_hours(self) -> float:
        """The same, times the ranks of each session."""
        return self._rank_hours_before + (self.session.hours * self.session.ranks if self.session else 0.0)

    def events_named(self, *names: str) -> list[Record]:
        return [event for event in self.events if event["name"] in names]

    def count(self, name: str) -> int:
        """How often something happened. Steps that a resume takes again tell again what happened in them."""
        happened = self.events_named(name)
        return len(happened) if name == "resume" else len({event["step"] for event in happened})


def is_sound(record: Record) -> bool:
    """Whether one can calculate with its numbers, and print it: what is nested too deep breaks a printer."""
    counted = all(0 <= record[name] <= MOST for name in ("step", "tokens"))
    return counted and not (record["kind"] == "event" and deeper_than(DEEPEST, record))


def ranks_of(record: Record) -> int:
    """How many ranks the event that begins a session tells of; 1 where it does not."""
    detail = record.get("detail")
    world = detail.get("world") if isinstance(detail, dict) else None
    size = world.get("size") if isinstance(world, dict) else None
    return size if type(size) is int and 0 < size <= MOST_RANKS else 1
