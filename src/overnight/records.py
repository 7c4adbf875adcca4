"""A run's records: one JSON object a line, appended as things happen.

Every record has kind, step (updates done), time (UTC) and tokens (trained on so far). The functions of
`Records` below are the one place where the fields of each kind stand.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overnight.errors import UserError
from overnight.files import is_full, sync, unused, write_synced

FILE = "records.jsonl"
LOSS = {"loss": float | None}
READ: dict[str, dict[str, Any]] = {"train": LOSS, "val": LOSS, "event": {"name": str, "detail": dict}}


class Records:
    """Appends to records.jsonl. A line reaches the operating system whole, at once: a killed process
    leaves at most one torn line, at the end, which `rewind` takes away. What a full disk does not take
    waits, and is written before the next line; `warn` is told once until it works again. tell: is handed
    each record too (trackers.py)."""

    def __init__(
        self, run: Path, warn: Callable[[OSError], None], tell: Callable[[dict[str, Any]], None] | None = None
    ):
        self.path = run / FILE
        new = not self.path.exists()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        if new:
            sync(run)
        self._waiting = b""
        self._warn, self._warned = warn, False
        self._tell = tell

    def train(
        self,
        step: int,
        tokens: int,
        loss: float,
        lr: float,
        grad_norm: float,
        step_ms: float,
        tokens_per_second: float,
        mfu: float | None,
    ) -> None:
        """One update. loss: nats per token, the mean over all of the step's tokens; grad_norm: before
        clipping; step_ms: wall time of the update alone; mfu: None where the device's peak is unknown."""
        self._write(
            "train", step, tokens,
            loss=loss, lr=lr, grad_norm=grad_norm, step_ms=round(step_ms, 3),
            tokens_per_second=round(tokens_per_second, 1), mfu=mfu,
        )  # fmt: skip

    def val(self, step: int, tokens: int, loss: float, bits_per_byte: float, val_tokens: int) -> None:
        """One validation. loss: nats per token over `val_tokens` predicted tokens."""
        self._write("val", step, tokens, loss=loss, bits_per_byte=bits_per_byte, val_tokens=val_tokens)

    def hellaswag(self, step: int, tokens: int, acc: float, acc_norm: float, style: str, items: int) -> None:
        """HellaSwag. acc, acc_norm: fractions of `items`; style: how it was asked (evals/hellaswag.py)."""
        self._write("hellaswag", step, tokens, acc=acc, acc_norm=acc_norm, style=style, items=items)

    def sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """One sampled text, without its prompt."""
        self._write("sample", step, tokens, prompt=prompt, text=text)

    def event(self, step: int, tokens: int, name: str, detail: dict[str, Any]) -> None:
        """start, resume, checkpoint, preempted, interrupted, done, and whatever else should be known."""
        self._write("event", step, tokens, name=name, detail=detail)

    def _write(self, kind: str, step: int, tokens: int, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"kind": kind, "step": step, "time": now, "tokens": tokens} | fields
        record = finite(record)
        self._waiting += json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            self.flush()
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(error)
        if self._tell:
            self._tell(record)

    def flush(self) -> None:
        """Write what waits. Raises OSError where the disk does not take it (yet)."""
        while self._waiting:  # a nearly full disk takes a part, then says that it is full
            self._waiting = self._waiting[self._file.write(self._waiting) :]
        self._warned = False

    def size(self) -> int:
        """Bytes of all records so far, those that wait included."""
        return os.fstat(self._file.fileno()).st_size + len(self._waiting)

    def sync(self, size: int) -> None:
        """Make sure that the first `size` bytes are on the disk; may be called by another thread. Raises
        OSError while some of them wait."""
        # In this order: what is written after the look is nobody's business.
        if os.fstat(self._file.fileno()).st_size < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `warn` was told
            self.flush()
        self._file.close()


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON has no way to write."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, a torn last line left out. Raises UserError for a line that is no record."""
    for number, record in lines(run):
        if record is None:
            raise UserError(f"{run / FILE}, line {number} is damaged: it is no record.")
        yield record


def sound(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run without those that are damaged: training goes on whatever happened to old ones."""
    return (record for _, record in lines(run) if record is not None)


def lines(run: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and record of each whole line; None for what is no record."""
    path = run / FILE
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield number, parse(line)


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None for what is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if is_record(record) else None


def is_record(value: Any) -> bool:
    """Whether it is an object that has what is read of records of its kind."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    wanted = {"step": int, "tokens": int} | READ.get(value["kind"], {})
    return all(
        name in value and isinstance(value[name], kind) and not isinstance(value[name], bool)
        for name, kind in wanted.items()
    )


def copy_aside(run: Path) -> None:
    """Keep what there is as damaged_records_1.jsonl and so on, for a person to look at."""
    if (run / FILE).is_file():
        shutil.copyfile(run / FILE, unused(run, "damaged_records_{}.jsonl"))


def rewind(run: Path, size: int) -> None:
    """Cut the records back to their first `size` bytes, what a checkpoint vouches for; of what came later
    only events are kept. Atomic: a kill leaves the old file or the new one (but on a full disk)."""
    path = run / FILE
    if not path.is_file():
        return
    content = path.read_bytes()
    if len(content) < size:  # cut short from outside; what is left of the last line is no record
        size = content.rfind(b"\n") + 1
    kept = []
    for line in content[size:].splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                if json.loads(line).get("kind") == "event":
                    kept.append(line)
            except (ValueError, AttributeError, RecursionError):
                continue  # torn by a power cut: the checkpoint vouches for nothing here
    try:
        write_synced(path, content[:size] + b"".join(kept))
    except OSError as error:
        if not is_full(error):
            raise
        with open(path, "r+b") as file:  # what is cut off makes room for what is kept of it
            file.truncate(size)
            file.seek(size)
            file.write(b"".join(kept))
            file.flush()
            os.fsync(file.fileno())
