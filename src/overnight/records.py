"""A run's records: one JSON object a line, appended as things happen.

Every record has kind, step (updates done), time (UTC) and tokens (trained on so far). The functions of
`Records` below are the one place where the fields of each kind stand.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from overnight.errors import UserError
from overnight.files import (
    is_full,
    open_new,
    open_own,
    open_regular,
    read_all,
    reason,
    sync,
    unused,
    write_synced,
)  # fmt: skip
from overnight.record_lines import LONGEST_LINE, encoded, finite, later_events, parse

FILE = "records.jsonl"
LARGEST = 2 << 30  # bytes: 8 million steps
PIECE = 1 << 20  # bytes read at a time
NOT_RECORDS = (errno.EFBIG, errno.EINVAL)  # of errors of open_regular: too large, special


class Records:
    """Appends to records.jsonl. A line reaches the operating system whole, at once: a killed process leaves
    at most one torn line, at the end, which `rewind` removes. What a full disk does not take waits, and is
    written before the next line; `warn` is called once until it works again. tell: is given each record too
    (trackers.py)."""

    def __init__(
        self, run: Path, warn: Callable[[OSError], None], tell: Callable[[dict[str, Any]], None] | None = None
    ):
        self.path = run / FILE
        new = not self.path.exists()
        self._file = open_own(self.path, append=True)
        if new:
            sync(run)
        self._waiting = b""
        self._cuts: list[str] = []
        self._measure()
        self._warn, self._warned = warn, False
        self._tell = tell
        self._began = time.monotonic()

    def _measure(self) -> None:
        """Hash and count all records, those that wait included."""
        self._file.seek(0)
        self._sha256 = hashlib.file_digest(self._file, "sha256")  # type: ignore[arg-type]
        self._sha256.update(self._waiting)
        self._size = self._file.tell() + len(self._waiting)

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
        """start, resume, checkpoint, preempted, interrupted, done, and whatever else should be known.
        elapsed: seconds, by a clock that nobody sets, since this process began to record."""
        elapsed = round(time.monotonic() - self._began, 3)
        self._write("event", step, tokens, name=name, detail=detail, elapsed=elapsed)

    def _write(self, kind: str, step: int, tokens: int, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"kind": kind, "step": step, "time": now, "tokens": tokens} | fields
        record = finite(record)
        line = encoded(record)
        self._sha256.update(line)
        self._size += len(line)
        self._waiting += line
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
            try:
                written = self._append()
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                self._reopen()  # a file server was restarted: the handle is dead, the file is not
                written = self._append()
            self._waiting = self._waiting[written:]
        self._warned = False

    def _append(self) -> int:
        self._notice_cut()
        return self._file.write(self._waiting)

    def _notice_cut(self) -> None:
        """Note it where another program has cut the file, and end the line that it cut: the next record has a
        line of its own."""
        was, size = self._size - len(self._waiting), os.fstat(self._file.fileno()).st_size
        if size >= was:
            return
        self._cuts.append(
            f"was cut from {was:,} to {size:,} bytes by another program: what was cut off is lost"
        )
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._waiting = b"\n" + self._waiting
        self._measure()

    def _reopen(self) -> None:
        again = open_own(self.path, append=True)
        self._file.close()
        self._file = again

    def mark(self) -> tuple[int, str]:
        """Bytes of all records so far, those that wait included, and their SHA-256: what a checkpoint vouches
        for."""
        return self._size, self._sha256.hexdigest()

    def mend(self) -> str:
        """Restore the file if another program deleted or replaced it while it was open. Returns what was
        wrong with it, or "". Records that were cut off are lost."""
        own = os.fstat(self._file.fileno())
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self.write_again()
            return "was deleted: it is written again"
        if not os.path.samestat(own, found):
            aside = unused(self.path.parent, "damaged_records_{}.jsonl")
            os.rename(self.path, aside)
            self.write_again()
            return f"was replaced: it is written again, the other file is {aside.name}"
        self._notice_cut()
        with contextlib.suppress(OSError):  # they go on waiting
            self.flush()
        cuts, self._cuts = self._cuts, []
        return "; ".join(cuts)

    def sync(self, size: int) -> None:
        """Make sure that the first `size` bytes are on the disk; may be called by another thread. Raises
        OSError while some of them wait."""
        # In this order: what is written after this check need not be covered.
        if self._size - len(self._waiting) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file.fileno())

    def write_again(self) -> None:
        """Make the file again where its folder was moved or deleted: the open file still has the content."""
        self._file.seek(0)
        write_synced(self.path, read_all(self._file, self.path, LARGEST))
        self._reopen()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `warn` was told
            self.flush()
        self._file.close()


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, a torn last line left out. Raises UserError for a line that is no record."""
    for number, record in lines(run):
        if record is None:
            raise UserError(f"{run / FILE}, line {number} is damaged: it is no record.")
        yield record


def sound(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run without those that are damaged: training goes on whatever happened to old ones."""
    return (record for _, record in lines(run) if record is not None)


def has_event(run: Path, name: str, step: int) -> bool:
    """Whether an event of this name was recorded at this step."""
    found = (record for record in sound(run) if record["kind"] == "event" and record["name"] == name)
    return any(record["step"] == step for record in found)


@contextlib.contextmanager
def opened(run: Path) -> Iterator[IO[bytes]]:
    """The open records of a run. Raises FileNotFoundError, and UserError where they are larger than those of
    any run or not an ordinary file."""
    path = run / FILE
    try:
        with open_regular(path, LARGEST) as file:
            yield file
    except OSError as error:
        if error.errno not in NOT_RECORDS or error.filename != str(path):
            raise
        remedy = "Move it out of the folder and run the command again."
        raise UserError(f"{path} cannot be read: {reason(error)}.", remedy) from None


def lines(run: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and record of each whole line; None for what is no record."""
    if not (run / FILE).is_file():
        return
    with opened(run) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if line.endswith(b"\n"):
                yield number, parse(line)
            elif len(line) == LONGEST_LINE:
                while line and not line.endswith(b"\n"):  # a damaged file may have lines of any length
                    line = file.readline(LONGEST_LINE)
                yield number, None


def problem(run: Path, size: int, sha256: str) -> str:
    """How the first `size` bytes of the records differ from those whose SHA-256 a checkpoint has; "" where
    they do not. Checkpoints of earlier versions have none, "": then only the length counts."""
    digest, left = hashlib.sha256(), size
    if not size:
        return ""
    try:
        with opened(run) as file:
            while piece := file.read(min(PIECE, left)):
                digest.update(piece)
                left -= len(piece)
    except FileNotFoundError:
        return f"{FILE} is missing"
    if left:
        return f"{FILE} has {size - left:,} bytes of the {size:,} that it had"
    return f"{FILE} is not what was recorded" if sha256 not in ("", digest.hexdigest()) else ""


def copy_aside(run: Path) -> str:
    """Keep a copy of the records as damaged_records_1.jsonl and so on, for a person to look at; its name."""
    path = unused(run, "damaged_records_{}.jsonl")
    with contextlib.suppress(FileNotFoundError), opened(run) as file, open_new(path) as copy:
        shutil.copyfileobj(file, copy, PIECE)
    return path.name


def rewind(run: Path, size: int) -> None:
    """Cut the records back to their first `size` bytes, what a checkpoint vouches for; of what came later
    only events are kept. Atomic: a kill leaves the old file or the new one (but on a full disk)."""
    path = run / FILE
    if not path.is_file():
        return
    with opened(run) as file:
        content = file.read(min(size, os.fstat(file.fileno()).st_size))
        if not content.endswith(b"\n"):  # cut or damaged from outside: what is left of a line is no record
            content = content[: content.rfind(b"\n") + 1]
        kept = list(later_events(file))
    try:
        write_synced(path, content + b"".join(kept))
    except OSError as error:
        if not is_full(error):
            raise
        with open_own(path) as own:  # what is cut off makes room for what is kept of it
            own.truncate(len(content))
            own.seek(len(content))
            left = b"".join(kept)
            while left:
                left = left[own.write(left) :]
            os.fsync(own.fileno())
