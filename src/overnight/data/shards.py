"""Tokens on disk: llm.c's shards, and a row of shards read as one long array.

A shard is 256 little-endian int32 (magic, version, number of tokens, zeros), then the tokens: uint16 with
magic 20240520, version 1; uint32 with magic 20240801, version 7, for vocabularies over 65,536 ids.
Source of the format: llm.c, dev/data/data_common.py.
"""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from overnight.errors import UserError
from overnight.files import sha256_file, sync

HEADER_BYTES = 256 * 4
KINDS: dict[tuple[int, int], np.dtype] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}


def header(tokens: int, dtype: np.dtype) -> bytes:
    """The first 1,024 bytes of a shard."""
    magic, version = next(kind for kind, stored in KINDS.items() if stored == dtype)
    fields = np.zeros(256, dtype="<i4")
    fields[:3] = magic, version, tokens
    return fields.tobytes()


def open_shard(path: Path) -> np.ndarray:
    """The tokens of a shard as a read-only memory map, (n,) uint16 or uint32; its size is checked."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER_BYTES)
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}. Prepare the data again.") from None
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
    if tokens == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(tokens,))


class ShardWriter:
    """Writes one split's tokens into numbered shards of `shard_tokens` each, the last one shorter."""

    def __init__(self, folder: Path, split: str, first: int, shard_tokens: int, dtype: np.dtype):
        self.folder, self.split, self.first = folder, split, first
        self.shard_tokens, self.dtype = shard_tokens, dtype
        self.counts: list[int] = []
        self._file: IO[bytes] | None = None

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens, (n,); they may end one shard and begin the next."""
        while len(tokens):
            if self._file is None or self.counts[-1] == self.shard_tokens:
                self._next()
            part = tokens[: self.shard_tokens - self.counts[-1]]
            assert self._file is not None
            self._file.write(part.astype(self.dtype, copy=False).tobytes())
            self.counts[-1] += len(part)
            tokens = tokens[len(part) :]

    def close(self) -> list[dict]:
        """Sync the shards; their entries for the manifest."""
        self._finish()
        return [
            {
                "file": path.name,
                "split": self.split,
                "tokens": count,
                "sha256": sha256_file(path),
            }
            for path, count in zip(map(self._path, range(len(self.counts))), self.counts, strict=True)
        ]

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}_{self.first + number:06d}.bin"

    def _next(self) -> None:
        self._finish()
        self.counts.append(0)
        self._file = open(self._path(len(self.counts) - 1), "wb")  # noqa: SIM115 (closed in _finish)
        self._file.write(header(0, self.dtype))

    def _finish(self) -> None:
        """Fill in the header of the shard in hand, now that its tokens are counted."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(header(self.counts[-1], self.dtype))
            self._file.close()
            sync(Path(self._file.name))
            self._file = None


class Tokens:
    """Shards in a row, read as one array: windows may cross from one shard into the next."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self.shards = [np.asarray(shard) for shard in shards if len(shard)]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length), (length,) int64."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
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
