"""Documents of parquet files: rows of any string type; damaged tables are refused."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.document_files import parquet, read

from overnight.errors import UserError

TEXTS_OF_ROWS = [f"row {i}\n" + "é漢😀" * (i % 7) for i in range(1000)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_a_row_of_parquet_is_one_document(kind: pa.DataType, compression: str, tmp_path: Path) -> None:
    texts = pa.array(TEXTS_OF_ROWS, pa.string()).cast(kind)
    path = parquet(tmp_path / "a.parquet", texts, compression=compression, row_group_size=300)
    assert pq.ParquetFile(path).num_row_groups == 4
    assert read(path) == TEXTS_OF_ROWS


def test_rows_without_text_are_no_documents(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "a.parquet", ["a", None, "", "b"])) == ["a", "b"]
    assert read(parquet(tmp_path / "none.parquet", pa.array([], pa.string()))) == []


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"content": ["a"], "n": [1]}, r'no column "text", but content, n: rename'),
        ({f"c{n}": [1] for n in range(20)}, r"but c0, c1, .*, c7 \.\.\. 20 in all: rename"),
        ({"text": [1, 2]}, r'the column "text" holds int64, not strings'),
        ({"text": [["a"]]}, r'the column "text" holds list<.*>, not strings'),
        ({"text": pa.array([b"a", b"\xff"])}, r'the column "text" holds binary, not strings'),
    ],
)
def test_a_table_of_other_things_is_refused(table: dict, says: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.parquet")


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """pyarrow writes what it is told is a string without looking."""
    claimed = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    with pytest.raises(UserError, match=r"a\.parquet is not UTF-8 text \(at row 2\)"):
        read(parquet(tmp_path / "a.parquet", claimed))


@pytest.mark.parametrize("damage", ["empty", "cut short", "other", "page", "footer"])
def test_a_damaged_table_is_refused(damage: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", TEXTS_OF_ROWS, row_group_size=300)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if damage == "page":  # of the last row group: the rows before it are fine
        column = pq.ParquetFile(path).metadata.row_group(3).column(1)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xa5" * column.total_compressed_size
    elif damage == "footer":
        content[-100:-50] = bytes(50)
    path.write_bytes({"empty": b"", "cut short": content[:half], "other": b"PAR1" * 50}.get(damage, content))
    with pytest.raises(UserError, match=r"a\.parquet is a damaged \.parquet file: .+ Fetch it again"):
        read(path)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", ["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs an extra: pip install 'overnight\[data\]'"):
        read(path)
