"""Documents of text and .jsonl files; the byte or line that is not UTF-8 or not JSON is named."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.document_files import parquet, read, write

from overnight.data import readers
from overnight.data.readers import read_file
from overnight.errors import UserError


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz", ".jsonl.zst", ".parquet"])
def test_a_link_to_an_endless_file_is_refused(suffix: str, tmp_path: Path) -> None:
    """A regular file of size 0 that has 256 GB to read."""
    path = tmp_path / f"a{suffix}"
    path.symlink_to("/proc/self/pagemap")
    with pytest.raises(UserError, match=r"cannot be read: it is a file of the system.*\nLeave it out"):
        list(read_file(path))


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
