"""Tokens on disk: llm.c's shards, and a row of shards read as one long array.

A shard is 256 little-endian int32 (magic, version, number of tokens, zeros), then the tokens: uint16 with
magic 20240520, version 1; uint32 with magic 20240801, version 7, for vocabularies over 65,536 ids.
Source of the format: llm.c, dev/data/data_common.py.
"""

import os
import re
import threading
from bisect import bisect_right
from collections.abc import Sequence
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any

import numpy as np

from overnight.errors import WRONG_INPUT, Failure, UserError
from overnight.files import open_new, open_own, open_regular, reason, sha256_file, sync
from overnight.visible import as_json

HEADER_BYTES = 256 * 4
BLOCK = 1 << 22  # tokens read at a time, where all of them are looked at
NAME = re.compile(r"(train|val|all)_[0-9]{6,12}\.bin")  # so that no name in a file leads out of its folder
KINDS: dict[tuple[int, int], np.dtype] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}


def header(tokens: int, dtype: np.dtype) -> bytes:
    """The first 1,024 bytes of a shard."""
    magic, version = next(kind for kind, stored in KINDS.items() if stored == dtype)
    fields = np.zeros(256, dtype="<i4")
    fields[:3] = magic, version, tokens
    return fields.tobytes()


class ChangedData(Failure):
    """A shard is not what it was when the data was opened."""


class WrongIds(ChangedData):
    """A shard contains ids outside of the tokenizer's vocabulary."""

    code = WRONG_INPUT


class Shard:
    """The tokens of one file, read when they are asked for.

    Behaves like a read-only array of one dimension: `len`, slices without a step, `np.asarray`. Not a memory
    map: of a file that is truncated meanwhile, reading a map kills the process (SIGBUS), while `read` raises
    ChangedData.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokens: int, start: int = HEADER_BYTES):
        self.path, self.dtype, self._tokens, self._start = path, dtype, tokens, start
        self._file = open_regular(path)
        self._lock = threading.Lock()  # where the system cannot read at a place, it has to seek

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(self._tokens)
        return self.read(begin, max(0, end - begin))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def read(self, begin: int, count: int) -> np.ndarray:
        """Tokens [begin, begin + count), (count,) of `dtype`. Raises ChangedData where they are gone."""
        size = count * self.dtype.itemsize
        try:
            content = self._read_at(self._start + begin * self.dtype.itemsize, size)
        except OSError as error:
            raise ChangedData(f"the shard {self.path} cannot be read any more: {reason(error)}.") from None
        if len(content) < size:
            raise ChangedData(f"the shard {self.path} has become shorter while it was in use.", RESTORE)
        return np.frombuffer(content, dtype=self.dtype)

    def _read_at(self, offset: int, size: int) -> bytes:
        if not hasattr(os, "pread"):  # Windows
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        file, content = self._file.fileno(), b""
        while part := os.pread(file, size - len(content), offset + len(content)):  # 2 GiB at most
            content = content + part if content else part
        return content


RESTORE = (
    "Restore it, or prepare the data again. Then run the same command: it resumes from the newest "
    "checkpoint, or starts from scratch if the run has none yet."
)


def open_shard(path: Path) -> Shard:
    """A shard whose size is what its header says."""
    try:
        with open_regular(path) as file:
            start = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {reason(error)}. Prepare the data again.") from None
    if len(start) < HEADER_BYTES:
        raise UserError(f"the shard {path} is cut short: {size} bytes are no header. Prepare the data again.")
    magic, version, tokens = np.frombuffer(start, dtype="<i4")[:3].tolist()
    dtype = KINDS.get((magic, version))
    if dtype is None:
        raise UserError(f"{path} is no shard: its magic is {magic}, version {version}, not 20240520, 1.")
    expected = HEADER_BYTES + tokens * dtype.itemsize
    if tokens < 0 or size != expected:
        raise UserError(
            f"the shard {path} is damaged: {size:,} bytes where its header says {expected:,}. "
            "Prepare the data again."
        )
    return Shard(path, dtype, tokens)


def count_of(value: Any, what: str) -> int:
    """A count as JSON has it; `what` names it in the ValueError for anything else: True, 2.0, -1."""
    if type(value) is not int or value < 0:
        raise ValueError(f"the {what} are {as_json(value)}")
    return value


def check_entries(shards: Any) -> list[dict[str, Any]]:
    """A manifest's list of shards. Raises ValueError, KeyError or TypeError if it is none: each is a file of
    the folder, stands there once, and has a count and a checksum."""
    if not isinstance(shards, list):
        raise TypeError(f"the shards are {as_json(shards)}")
    for shard in shards:
        if extra := set(shard) - {"file", "split", "tokens", "sha256"}:
            raise ValueError(f"a shard has {', '.join(map(repr, extra))}, which is nothing of ours")
        if not NAME.fullmatch(shard["file"]):
            raise ValueError(f"{as_json(shard['file'])} is no shard's name: none leads out of the folder")
        if not (isinstance(shard["sha256"], str) and shard["sha256"].isascii()):
            raise ValueError(f"the sha256 of {shard['file']} is {as_json(shard['sha256'])}")
        count_of(shard["tokens"], "tokens")
        if shard["split"] not in ("train", "val", "all"):
            raise ValueError(f"the split of {shard['file']} is {as_json(shard['split'])}")
    if len({shard["file"] for shard in shards}) < len(shards):
        raise ValueError("a shard is listed twice")
    return shards


class ShardWriter:
    """Writes one split's tokens into numbered shards of `shard_tokens` each, the last one shorter."""

    def __init__(self, folder: Path, split: str, first: int, shard_tokens: int, dtype: np.dtype):
        self.folder, self.split, self.first = folder, split, first
        self.shard_tokens, self.dtype = shard_tokens, dtype
        self.shards: list[dict[str, Any]] = []  # the finished ones, as the manifest has them
        self._file: IO[bytes] | None = None  # the one in hand, and its tokens
        self._count = 0

    def __len__(self) -> int:
        """Tokens so far."""
        return sum(shard["tokens"] for shard in self.shards) + self._count

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens, (n,); they may end one shard and begin the next."""
        while len(tokens):
            if self._file is None or self._count == self.shard_tokens:
                self._finish()
                self._path.unlink(missing_ok=True)  # what came after the last commit of a killed process
                self._file = open_new(self._path)
                self._file.write(header(0, self.dtype))
            part = tokens[: self.shard_tokens - self._count]
            self._file.write(part.astype(self.dtype, copy=False).tobytes())
            self._count += len(part)
            tokens = tokens[len(part) :]

    def close(self) -> list[dict[str, Any]]:
        """Sync the shards; their entries for the manifest."""
        self._finish()
        return self.shards

    def sync(self) -> dict[str, Any]:
        """Make sure that the tokens so far are on the disk; what `resume` needs to go on from here."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"shards": list(self.shards), "open": self._count if self._file else None}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state of `sync`: what was written after it is cut off. Raises ValueError if the files
        hold less than they did, or this is no such state."""
        self.shards = check_entries(state["shards"])
        if state["open"] is not None and count_of(state["open"], "open tokens") > self.shard_tokens:
            raise ValueError(f"the open shard has more tokens than {self.shard_tokens}")
        for shard in self.shards:
            expected = HEADER_BYTES + shard["tokens"] * self.dtype.itemsize
            if (self.folder / shard["file"]).stat().st_size != expected:
                raise ValueError(f"{shard['file']} is not as long as it was")
        if state["open"] is not None:
            self._file, self._count = BufferedRandom(open_own(self._path)), state["open"]  # type: ignore[arg-type]
            end = HEADER_BYTES + self._count * self.dtype.itemsize
            if self._file.seek(0, os.SEEK_END) < end:
                raise ValueError(f"{self._path.name} is shorter than it was")
            self._file.truncate(end)
            self._file.seek(end)

    @property
    def _path(self) -> Path:
        """The shard in hand, or the next."""
        return self.folder / f"{self.split}_{self.first + len(self.shards):06d}.bin"

    def _finish(self) -> None:
        """Fill in the header of the shard in hand, now that its tokens are counted."""
        if self._file is not None:
            path = self._path
            self._file.seek(0)
            self._file.write(header(self._count, self.dtype))
            self._file.close()
            sync(path)
            entry = {
                "file": path.name, "split": self.split, "tokens": self._count, "sha256": sha256_file(path)
            }  # fmt: skip
            self.shards.append(entry)
            self._file, self._count = None, 0


class Tokens:
    """Shards in a row, read as one array: windows may cross from one shard into the next.

    vocab_size: ids that are not below it are refused when they are read, if it is given.
    """

    def __init__(self, shards: Sequence[Shard | np.ndarray], vocab_size: int | None = None):
        self.vocab_size = vocab_size
        self.shards = [shard for shard in shards if len(shard)]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def highest(self) -> int:
        """The largest id; -1 where there are no tokens."""
        starts = range(0, len(self), BLOCK)
        return max((int(self._read(at, min(BLOCK, len(self) - at)).max()) for at in starts), default=-1)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length), (length,) int64. Raises WrongIds."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
        if length == 0:
            return np.empty(0, dtype=np.int64)
        found = self._read(start, length)
        if self.vocab_size is not None and (highest := found.max()) >= self.vocab_size:
            at = start + int(found.argmax())
            shard = self.shards[bisect_right(self.starts, at) - 1]
            raise WrongIds(
                f"the shard {getattr(shard, 'path', '')} is damaged: token {at:,} of the split is {highest}, "
                f"but the tokenizer has {self.vocab_size:,} ids. Restore it, or prepare the data again."
            )
        return found

    def _read(self, start: int, length: int) -> np.ndarray:
        number = bisect_right(self.starts, start) - 1
        if start + length <= self.starts[number + 1]:  # all in one shard, as nearly always
            offset = start - self.starts[number]
            return self.shards[number][offset : offset + length].astype(np.int64)
        out, filled = np.empty(length, dtype=np.int64), 0
        while filled < length:
            offset = start + filled - self.starts[number]
            part = self.shards[number][offset : offset + length - filled]
            out[filled : filled + len(part)] = part
            filled, number = filled + len(part), number + 1
        return out
