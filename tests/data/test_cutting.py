"""Long documents are cut into pieces at spaces; their text and their tokens stay the same."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.document_files import joined, parquet

from overnight.data import readers, tokens
from overnight.data.readers import Piece, read_file

WORDS = st.lists(
    st.sampled_from(
        [*" \n\t\r'.\x1c\u00a0\u3000", "  ", "\n\n", " a", "it's", "漢字かな", "é", "😀", "12", "--"]
    )
)
TEXTS = st.text() | WORDS.map("".join)

gpt2 = tokens.gpt2()


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


def test_a_long_row_is_cut_as_a_long_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 4)
    path = parquet(tmp_path / "a.parquet", ["one two  six", "x"])
    assert list(read_file(path)) == lines("one two  six", "x")


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
