"""gigatoken's ids are tiktoken's, whatever the text."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overnight.data import fast, tokens
from overnight.data.documents import stdlib_files
from overnight.data.prepare import prepare
from overnight.errors import UserError

TOKENIZERS = {"gpt2": tokens.gpt2()} | {
    f"bpe:{size}": tokens.train_bpe(iter([Path(random.__file__).read_text(), "été 漢字 'tis \u088f's"]), size)
    for size in (257, 300, 2048)
}
ENCODERS = {name: fast.encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
NAMES = pytest.mark.parametrize("name", TOKENIZERS)
SPACES = [*" \n\t\r\x00\x1c\x1f\x7f\x85\xa0\u180e\u200b\u2028\u3000\ufeff", "  ", "\r\n"]
LETTERS = [
    *"aZß1٣½ⅷ漢かé😀\u0301\u200d",
    "e\u0301",
    "👩\u200d👩",
    "\u088f",
    "\U00032400",
    "\U000e0041",
    "\ue000",
]
WORDS = ["'s", "'ll", "'", "\u2019s", "<|endoftext|>", "the", " word", "123", "_", "--", "!!"]
PARTS = st.sampled_from([*SPACES, *LETTERS, *WORDS])
TEXTS = st.text() | st.lists(PARTS, max_size=30).map("".join)


def same(name: str, text: str) -> bool:
    return np.array_equal(ENCODERS[name](text), TOKENIZERS[name].encode(text))


def test_it_is_gigatoken_that_encodes() -> None:
    assert all(ENCODERS[name] != TOKENIZERS[name].encode for name in TOKENIZERS)


@NAMES
@given(text=TEXTS)
@example(text="")
@example(text="\u088f's")
def test_every_text_has_the_same_ids(name: str, text: str) -> None:
    ids = ENCODERS[name](text)
    assert ids.dtype == TOKENIZERS[name].dtype
    assert same(name, text)


@NAMES
@pytest.mark.parametrize("context", ["{}'s", "a{}b", " {}", "1{}1", "{0}{0} x"])
def test_every_character_has_the_same_ids(name: str, context: str) -> None:
    """Each in a text of its own would take minutes: 500 share one, each on a line."""
    points = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200), *range(0x10FF00, 0x110000)]
    for at in range(0, len(points), 500):
        assert same(name, "\n".join(context.format(chr(point)) for point in points[at : at + 500]))


def test_characters_that_the_two_class_differently_are_found() -> None:
    """By asking both about every one of them, character by character, where Unicode has letters."""
    ours = tokens.gpt2()
    theirs = fast.gigatoken(ours)
    points = [*range(0x80, 0x3000), *range(0xA640, 0xABFF), *range(0x10000, 0x12000)]
    differing = [
        point
        for point in points
        if theirs.encode(f"{chr(point)}'s").tolist() != ours.encode(f"{chr(point)}'s").tolist()
    ]
    assert [point for point in points if fast.unlike()[point]] == differing


@NAMES
def test_long_runs_have_the_same_ids(name: str) -> None:
    for text in (
        " " * 1_200_000 + "x",
        "a" * 30_000,
        "\n" * 50_000,
        "12" * 20_000,
        "-" * 30_000,
        "é" * 20_000,
    ):
        assert same(name, text)


@NAMES
def test_programs_have_the_same_ids(name: str) -> None:
    for path in stdlib_files()[:150]:
        assert same(name, path.read_text(encoding="utf-8"))


@NAMES
def test_half_a_character_is_refused_as_before(name: str) -> None:
    with pytest.raises(UserError, match="is not valid Unicode"):
        ENCODERS[name]("half \ud800 a pair")


def test_other_tokenizers_encode_by_themselves() -> None:
    char = tokens.train_char(["abc"])
    assert fast.encoder(char)("cab").tolist() == [2, 0, 1]


def test_without_it_tiktoken_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert fast.encoder(TOKENIZERS["gpt2"]) == TOKENIZERS["gpt2"].encode


def test_the_bytes_of_a_data_folder_do_not_depend_on_it(tmp_path: Path) -> None:
    """`prepare` encodes with gigatoken here; tiktoken's ids are the ones that it should write."""
    words = random.Random(0).choices(["the ", "\u088f's ", "漢字", "<|endoftext|>", " 12's\n"], k=5000)
    (tmp_path / "text.txt").write_text("".join(words))
    data = prepare(f"text:{tmp_path / 'text.txt'}", tmp_path / "data", "gpt2", 1, 10**8)
    written = [*data.split("train").read(0, len(data.split("train")))]
    written += [*data.split("val").read(0, len(data.split("val")))]
    expected = TOKENIZERS["gpt2"].encode("".join(words)).tolist()
    assert [int(i) for i in written] == [data.tokenizer.eot, *expected]
