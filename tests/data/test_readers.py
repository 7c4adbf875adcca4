import gzip
import io
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from overnight.data import readers, tokens
from overnight.data.readers import Piece, read_file
from overnight.errors import UserError

WORDS = st.lists(
    st.sampled_from(
        [*" \n\t\r'.\x1c\u00a0\u3000", "  ", "\n\n", " a", "it's", "漢字かな", "é", "😀", "12", "--"]
    )
)
TEXTS = st.text() | WORDS.map("".join)

gpt2 = tokens.gpt2()
PACKED = gzip.compress(b"some text that is packed", mtime=0)
# With a checksum, as the command zstd writes it.
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(random.Random(0).randbytes(1000).hex().encode())


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents that pieces are parts of."""
    texts: list[str] = []
    for piece in pieces:
        if piece.first:
            texts.append("")
        texts[-1] += piece.text
    return texts


def read(path: Path) -> list[str]:
    return joined(read_file(path))


def write(path: Path, content: bytes) -> Path:
    """Write a file, packed as its name says."""
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


def whole(text: str) -> list[Piece]:
    return list(readers.read_whole(io.BytesIO(text.encode()), Path("a.txt")))


def lines(*texts: str) -> list[Piece]:
    file = io.BytesIO("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return list(readers.read_lines(file, Path("a.jsonl")))


@pytest.mark.parametrize("reader", [whole, lines])
@given(text=TEXTS, block=st.integers(1, 9))
def test_cutting_a_document_changes_neither_its_text_nor_its_tokens(reader, text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", block)
        pieces = reader(text)
    assert joined(pieces) == ([text] if text else [])
    ids = [i for piece in pieces for i in gpt2.encode(piece.text).tolist()]
    assert ids == gpt2.encode(text).tolist()


def test_documents_are_cut_before_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 4)
    assert whole("one two three") == [Piece("one", True), Piece(" two", False), Piece(" three", False)]
    assert lines("one two  six", "x") == [Piece("one two", True), Piece("  six", False), Piece("x", True)]


def test_a_long_run_without_spaces_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 4)
    monkeypatch.setattr(readers, "LONGEST_RUN", 8)
    assert [piece.text for piece in whole("a" * 20)] == ["a" * 8, "a" * 8, "a" * 4]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".TXT"])
def test_a_file_is_one_document(suffix: str, packed: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}{packed}", "ein Wörtchen\r\n\nnoch eins\n".encode())
    assert read(path) == ["ein Wörtchen\r\n\nnoch eins\n"]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_line_of_jsonl_is_one_document(packed: str, tmp_path: Path) -> None:
    content = '{"text": "eins\\nzwei"}\n\n  \n{"id": 7, "text": "drü"}\n{"text": ""}\n{"text": "\\u00e9"}'
    assert read(write(tmp_path / f"a.jsonl{packed}", content.encode())) == ["eins\nzwei", "drü", "é"]


@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-16-le")), block=st.integers(1, 9))
def test_what_is_not_utf8_is_refused_naming_the_byte(content: bytes, block: int) -> None:
    """Python's own decoder, given all at once, says which byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", block)
        try:
            content.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(UserError, match=rf"^a\.txt is not UTF-8 text \(at byte {error.start:,}\)\."):
                list(readers.read_whole(io.BytesIO(content), Path("a.txt")))
        else:
            list(readers.read_whole(io.BytesIO(content), Path("a.txt")))


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 6, 1 << 20])
@pytest.mark.parametrize(
    ("content", "byte"),
    [(b"abc\xffdef", 3), (b"\xfcber", 0), (b"abc\xe2\x82A", 3), (b"abc\xe2\x82", 3), (b"ab\xf0\x9f\x98", 2)],
)
def test_the_byte_is_named_wherever_blocks_end(
    content: bytes, byte: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK", block)
    with pytest.raises(UserError, match=rf"at byte {byte}\)"):
        list(readers.read_whole(io.BytesIO(content), Path("a.txt")))


@pytest.mark.parametrize(
    "line",
    [
        *("not json", "[1]", "5", "null", '"text"', '{"txt": "a"}', '{"text": 5}', '{"text": null}', "{}"),
        *('["text"]', '{"text": ["a"]}', '{"text": "a"', '{"text": "a"} {"text": "b"}', "[" * 100_000),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n\n{line}\n{{"text": "good"}}\n'.encode())
    with pytest.raises(UserError, match=r'a\.jsonl, line 3: not a JSON object with a string "text"\.$'):
        read(path)


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "\xfcber"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl is not UTF-8 text \(at line 2\)"):
        read(path)


def test_a_line_too_long_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 1 << 20)
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "' + b"a" * (1 << 20) + b'"}\n')
    with pytest.raises(UserError, match=r"line 2: longer than 1 MiB"):
        read(path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\ud800b", "a\ufffdb"),
        (r"a\udc00b", "a\ufffdb"),
        (r"a\ud800", "a\ufffd"),
        (r"\ud83d\ude00", "😀"),
        (r"\ufeffa", "\ufeffa"),
    ],
)
def test_half_a_surrogate_pair_is_replaced(written: str, meant: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", f'{{"text": "{written}"}}'.encode())) == [meant]


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


# --- Parquet


def parquet(path: Path, texts: pa.Array | list, **options: object) -> Path:
    """A table with the texts and a column that nobody asked for."""
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path, **options)
    return path


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


def test_a_long_row_is_cut_as_a_long_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 4)
    path = parquet(tmp_path / "a.parquet", ["one two  six", "x"])
    assert list(read_file(path)) == lines("one two  six", "x")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"content": ["a"], "n": [1]}, r'no column "text", but content, n: rename'),
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


def test_parquet_inside_another_packing_is_refused(tmp_path: Path) -> None:
    content = parquet(tmp_path / "a.parquet", ["a"]).read_bytes()
    with pytest.raises(UserError, match=r"a\.parquet\.gz: parquet is packed in itself; unpack the \.gz"):
        read(write(tmp_path / "a.parquet.gz", content))


# --- What unpacks to far more than a text


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


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz", ".jsonl.zst", ".parquet"])
def test_how_much_of_a_file_has_been_read_is_told(suffix: str, tmp_path: Path) -> None:
    texts = [random.Random(i).randbytes(500).hex() for i in range(6000)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet(path, texts, row_group_size=500, use_dictionary=False)
    else:
        written = [json.dumps({"text": text}) for text in texts] if "jsonl" in suffix else texts
        write(path, "\n".join(written).encode())
    told: list[int] = []
    for _ in read_file(path, told.append):
        pass
    assert told == sorted(told)
    assert told[0] <= 0.6 * path.stat().st_size
    assert 0.9 * path.stat().st_size <= told[-1] <= path.stat().st_size


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", ["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs an extra: pip install 'overnight\[data\]'"):
        read(path)


def slow_cut(text: str) -> int:
    """The rule of `Piece`, letter by letter."""
    if len(text) < readers.BLOCK:
        return 0
    for i in range(len(text) - 1, 0, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return len(text) if len(text) >= readers.LONGEST_RUN else 0


@given(
    st.lists(st.sampled_from(["a", " ", "\n", "\t", "bc d", "\x1c", "\u2003", "é"]), max_size=80), st.data()
)
def test_cuts_are_where_they_always_were(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", 5)
        patch.setattr(readers, "LONGEST_RUN", 30)
        end = slow_cut(text)
        assert readers.cut(text) == end
        rest = text[end:]  # no cut lies in there: what comes later may be searched alone
        more = rest + data.draw(st.sampled_from(["", "x", " y", "z  ", "\n"]))
        assert readers.cut(more, searched=len(rest) if end else 0) == slow_cut(more)
