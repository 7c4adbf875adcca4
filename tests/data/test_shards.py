import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.data.shards import ShardWriter, Tokens, open_shard
from overnight.errors import UserError


def write(folder: Path, tokens: list[int], dtype: str = "<u2", shard_tokens: int = 100) -> list[dict]:
    writer = ShardWriter(folder, "train", 1, shard_tokens, np.dtype(dtype))
    writer.append(np.array(tokens))
    return writer.close()


@pytest.mark.parametrize(
    ("dtype", "letter", "magic", "version"), [("<u2", "H", 20240520, 1), ("<u4", "I", 20240801, 7)]
)
def test_a_shard_is_256_little_endian_int32_and_then_the_tokens(
    dtype: str, letter: str, magic: int, version: int, tmp_path: Path
) -> None:
    tokens = [0, 1, 50256, 65535]
    write(tmp_path, tokens, dtype)
    written = (tmp_path / "train_000001.bin").read_bytes()
    assert written == struct.pack("<256i", magic, version, 4, *[0] * 253) + struct.pack(
        f"<4{letter}", *tokens
    )
    shard = open_shard(tmp_path / "train_000001.bin")
    assert np.asarray(shard).tolist() == tokens
    assert shard.dtype == dtype


def test_tokens_are_dealt_into_numbered_shards_however_they_arrive(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "val", 0, shard_tokens=4, dtype=np.dtype("<u2"))
    for part in ([0, 1, 2], [], [3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [13]):
        writer.append(np.array(part, dtype=np.uint16))
    entries = writer.close()
    names = ["val_000000.bin", "val_000001.bin", "val_000002.bin", "val_000003.bin"]
    assert [entry["file"] for entry in entries] == sorted(path.name for path in tmp_path.iterdir()) == names
    assert [entry["tokens"] for entry in entries] == [4, 4, 4, 2]
    assert {entry["split"] for entry in entries} == {"val"}
    for entry, first in zip(entries, (0, 4, 8, 12), strict=True):
        path = tmp_path / entry["file"]
        assert open_shard(path)[:].tolist() == list(range(first, first + entry["tokens"]))
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nothing_written_makes_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, []) == []
    assert not list(tmp_path.iterdir())


def header(*fields: int) -> bytes:
    return struct.pack("<256i", *fields, *[0] * (256 - len(fields)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "cut short: 0 bytes"),
        (lambda content: content[:1023], "cut short: 1023 bytes"),
        (lambda content: content[:1024], "damaged: 1,024 bytes where its header says 1,030"),
        (lambda content: content[:-1], "damaged: 1,029 bytes"),
        (lambda content: content + b"\0", "damaged: 1,031 bytes"),
        (lambda content: header(20240521, 1, 3) + content[1024:], "magic is 20240521, version 1"),
        (lambda content: header(20240520, 2, 3) + content[1024:], "magic is 20240520, version 2"),
        (lambda content: header(20240801, 1, 3) + content[1024:], "magic is 20240801, version 1"),
        (lambda content: header(20240801, 7, 3) + content[1024:], "header says 1,036"),
        (lambda content: header(20240520, 1, -3) + content[1024:], "damaged"),
        (lambda content: header(20240520, 1, -3), "damaged"),
        (lambda content: struct.pack(">256i", 20240520, 1, 3, *[0] * 253) + content[1024:], "no shard"),
    ],
)
def test_a_damaged_shard_is_refused(damage: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "train_000001.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"train_000001\.bin .*{says}"):
        open_shard(path)


def test_a_shard_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(UserError, match="cannot read the shard"):
            open_shard(path)


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").write_bytes(header(20240520, 1, 0))
    assert len(open_shard(tmp_path / "empty.bin")) == 0


def test_an_opened_shard_cannot_be_written_to(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    shard = open_shard(tmp_path / "train_000001.bin")
    with pytest.raises(ValueError, match="read-only"):
        shard[:][0] = 5


def test_a_row_of_shards_reads_across_their_borders() -> None:
    row = Tokens([np.array([5, 6], dtype="<u2"), np.array([], dtype="<u2"), np.array([7, 8, 9], dtype="<u2")])
    assert len(row) == 5
    assert row.read(1, 3).tolist() == [6, 7, 8]
    assert row.read(1, 3).dtype == np.int64


@given(st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=5), min_size=1), st.data())
def test_a_row_of_shards_reads_as_their_concatenation(shards: list[list[int]], data: st.DataObject) -> None:
    together = [token for shard in shards for token in shard] + [0]
    row = Tokens([np.array(shard, dtype=np.uint16) for shard in [*shards, [0]]])
    start = data.draw(st.integers(0, len(together) - 1))
    length = data.draw(st.integers(0, len(together) - start))
    assert len(row) == len(together)
    assert row.read(start, length).tolist() == together[start : start + length]


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 5), (4, 1), (3, 2), (-5, 3)])
def test_reading_beyond_the_tokens_is_an_error(start: int, length: int) -> None:
    row = Tokens([np.arange(3, dtype=np.uint16), np.arange(1, dtype=np.uint16)])
    with pytest.raises(IndexError):
        row.read(start, length)


def test_nothing_can_be_read_of_nothing() -> None:
    assert Tokens([]).read(0, 0).tolist() == []
    with pytest.raises(IndexError):
        Tokens([]).read(0, 1)
