"""Documents of .gz and .zst files; damaged files and decompression bombs are refused."""

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from tests.data.document_files import parquet, read, write

from overnight.data import readers
from overnight.data.readers import read_file
from overnight.errors import UserError

PACKED = gzip.compress(b"some text that is packed", mtime=0)
# With a checksum, as the command zstd writes it.
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(random.Random(0).randbytes(1000).hex().encode())


@pytest.mark.parametrize(
    "content",
    [
        b"plain text",
        PACKED[:-9],
        PACKED[:12],
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],  # another checksum
        PACKED[:10] + b"\xff" * 20 + PACKED[30:],
        PACKED + b"more",
    ],
    ids=["plain", "no end", "cut short", "checksum", "scrambled", "more"],
)
def test_a_damaged_gz_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt\.gz is a damaged \.gz file: .+ Fetch it again"):
        read(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    "content",
    [b"plain text", ZSTD[:-1], ZSTD[:10], ZSTD[:40] + b"\xff" * 20 + ZSTD[60:], ZSTD + b"more"],
    ids=["plain", "no end", "cut short", "scrambled", "more"],
)
def test_a_damaged_zst_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt\.zst is a damaged \.zst file: .+ Fetch it again"):
        read(tmp_path / "a.txt.zst")


def test_packed_files_may_come_in_parts(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(pack(b"one ") + pack(b"two"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert read(tmp_path / "a.txt.zst") == read(tmp_path / "a.txt.gz") == ["one two"]


def test_parquet_inside_another_packing_is_refused(tmp_path: Path) -> None:
    content = parquet(tmp_path / "a.parquet", ["a"]).read_bytes()
    with pytest.raises(UserError, match=r"a\.parquet\.gz: parquet is packed in itself; unpack the \.gz"):
        read(write(tmp_path / "a.parquet.gz", content))


def bomb(path: Path) -> Path:
    """A small file that claims to be a very long text."""
    line = "it is the same again and again\n"
    if path.suffix == ".parquet":
        rows = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([line * 2000]))
        return parquet(path, rows)
    content = line.encode() * 6_000_000
    path.write_bytes(
        gzip.compress(content) if path.suffix == ".gz" else zstandard.ZstdCompressor().compress(content)
    )
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst", "a.txt.gz"])
def test_a_bomb_is_refused_before_it_bursts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ANY_TEXT", 1 << 20)
    monkeypatch.setattr(readers, "MOST_TEXT", 40)
    path = bomb(tmp_path / name)
    taken: list[int] = []
    with pytest.raises(UserError, match=r"holds over 40 times its own size in text"):
        taken.extend(len(piece.text) for piece in read_file(path))
    assert sum(taken) <= (1 << 20) + 40 * path.stat().st_size < 150_000_000


def test_text_that_repeats_itself_is_still_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.zst", b"0123456789\n" * 1_000_000)
    assert path.stat().st_size < 11_000_000 / readers.MOST_TEXT
    assert len(read(path)[0]) == 11_000_000
