import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from overnight.data import tokens
from overnight.errors import UserError

FRAGMENTS = [
    *" \t\n\r'.!-_09aßЖ漢ñ\x00\x1c\u00a0\u3000\ufeff\uffff😀",
    *("  ", "\n\n", "e\u0301", "👩\u200d🚀", "漢字かな", "한국어", "1234"),
    *(" the", "'s", "'LL", "don't", "I've", "def f(x):", "<|endoftext|>"),
]
TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join)

gpt2 = cache(tokens.gpt2)


def stand_ins() -> dict[int, str]:
    """Bytes as printable characters, in the order of their ids (bytes_to_unicode of gpt-2/src/encoder.py)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """GPT-2's tokens and merges, spelt as OpenAI spells them."""
    spelt = list(stand_ins().values())
    merges = []
    for left, right in gpt2().merges.tolist():
        merges.append((spelt[left], spelt[right]))
        spelt.append(spelt[left] + spelt[right])
    return spelt, merges


@cache
def oracle() -> tokenizers.Tokenizer:
    """GPT-2's tokenizer as the tokenizers library has it."""
    spelt, merges = vocabulary()
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(spelt)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


@cache
def trained() -> tokens.BytePairTokenizer:
    return tokens.train_bpe(iter(["the cat sat on the mat, that is that.\n"] * 3), 300)


@cache
def characters() -> tokens.CharTokenizer:
    return tokens.train_char(FRAGMENTS)


EVERY_KIND = pytest.mark.parametrize("make", [gpt2, trained, characters])


def test_merges_are_openais() -> None:
    """The checksum is that of OpenAI's vocab.bpe, the one that tiktoken checks."""
    text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in vocabulary()[1])
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def test_gpt2_gives_the_ids_of_the_lecture() -> None:
    ids = gpt2().encode("Hello, I'm a language model,")
    assert ids.tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert ids.dtype == np.uint16


def test_gpt2_has_50257_ids_and_endoftext_is_the_last() -> None:
    assert (gpt2().vocab_size, gpt2().eot) == (50257, 50256)


@given(TEXTS)
def test_gpt2_ids_are_those_of_the_tokenizers_library(text: str) -> None:
    assert gpt2().encode(text).tolist() == oracle().encode(text).ids


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="no TIKTOKEN_CACHE_DIR: no network here")
@given(TEXTS)
def test_gpt2_ids_are_those_of_tiktokens_own_gpt2(text: str) -> None:
    ids = tiktoken.get_encoding("gpt2").encode(text, disallowed_special=())
    assert gpt2().encode(text).tolist() == ids


@pytest.mark.parametrize("length", [2, 1_000, 2_000_000])
def test_a_run_of_spaces_of_any_length_is_encoded(length: int) -> None:
    """Its last space belongs to the word that follows; tiktoken's pattern alone stops at a million."""
    assert gpt2().encode(" " * length + "a").tolist() == [220] * (length - 1) + [257]
    newline, two_newlines, a = 198, 628, 64
    ids = gpt2().encode("\n" * (length + 1) + "a" + "\n" * 200_000).tolist()
    assert ids == [two_newlines] * (length // 2) + [newline, a] + [two_newlines] * 100_000


@EVERY_KIND
def test_endoftext_in_text_is_plain_text(make) -> None:
    ids = make().encode("<|endoftext|>")
    assert make().eot not in ids
    assert make().decode(ids) == "<|endoftext|>"


@EVERY_KIND
def test_endoftext_is_the_last_id_and_has_no_bytes(make) -> None:
    tokenizer = make()
    assert tokenizer.eot == tokenizer.vocab_size - 1 == len(tokenizer.id_bytes()) - 1
    assert tokenizer.byte_lengths[tokenizer.eot] == 0
    assert tokenizer.decode([tokenizer.eot]) == ""


@EVERY_KIND
def test_what_is_no_unicode_is_refused(make) -> None:
    with pytest.raises(UserError, match=r"'a\\udcff' is not valid Unicode: give UTF-8"):
        make().encode("a\udcff")  # what Python makes of a byte of the command line that is not UTF-8


@pytest.mark.parametrize("make", [gpt2, trained])
@given(text=TEXTS)
def test_byte_pairs_give_any_text_back(make, text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@given(TEXTS)
def test_characters_give_their_text_back(text: str) -> None:
    tokenizer = tokens.train_char([text, "x"])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_broken_utf8_is_decoded_as_replacement_characters() -> None:
    first_byte_of_a_euro_sign = gpt2().id_bytes().index(b"\xe2")
    assert gpt2().decode([first_byte_of_a_euro_sign]) == "\ufffd"


def test_characters_are_numbered_in_code_point_order() -> None:
    tokenizer = tokens.train_char(["hel", "lo"])
    assert tokenizer.characters == "ehlo"
    assert tokenizer.encode("hello").tolist() == [1, 0, 2, 2, 3]
    assert (tokenizer.eot, tokenizer.vocab_size) == (4, 5)


@pytest.mark.parametrize(
    ("character", "name"), [("é", "U+00E9"), ("😀", "U+1F600"), ("\n", "U+000A"), ("f", "U+0066")]
)
def test_an_unknown_character_is_refused_with_its_name(character: str, name: str) -> None:
    with pytest.raises(UserError, match=name.replace("+", r"\+")) as refusal:
        tokens.train_char(["ehlo"]).encode(f"hello{character}hello")
    assert repr(character) in str(refusal.value)


@pytest.mark.parametrize(("count", "width"), [(2**16 - 1, 2), (2**16, 4)])
def test_ids_are_uint16_while_they_fit(count: int, width: int) -> None:
    everything = "".join(chr(point) for point in range(0x10000, 0x10000 + count))
    ids = tokens.train_char([everything]).encode(everything)
    assert ids.dtype == f"<u{width}"
    assert ids.tolist() == list(range(count))


def test_byte_pairs_are_learnt_by_how_often_they_come() -> None:
    """'a' 'b' comes four times, then ' ' 'ab' three times, then ' ab' 'c' once; no pair is left."""
    tokenizer = tokens.train_bpe(iter(["ab ab ab abc"]), vocab_size=1000)
    assert tokenizer.id_bytes()[256:] == [b"ab", b" ab", b" abc", b""]
    assert tokenizer.encode("ab abd abc").tolist() == [256, 257, ord("d") - ord("!"), 258]


def test_byte_pairs_stop_at_the_vocabulary_asked_for() -> None:
    assert tokens.train_bpe(iter(["ab ab ab abc"]), vocab_size=258).id_bytes()[256:] == [b"ab", b""]


def test_the_same_text_gives_the_same_byte_pairs() -> None:
    texts = ["a cat, a mat, a hat"] * 3 + ["tac tam tah"] * 3  # many ties
    first, second = (tokens.train_bpe(iter(texts), 290) for _ in range(2))
    assert first.merges.tolist() == second.merges.tolist()


@EVERY_KIND
def test_a_tokenizer_comes_back_from_its_json(make, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(make().to_json()))
    back = tokens.load(path)
    assert back.to_json() == make().to_json()
    assert back.id_bytes() == make().id_bytes()
    assert back.sha256 == make().sha256
    text = "".join(FRAGMENTS)
    assert back.encode(text).tolist() == make().encode(text).tolist()


def test_every_tokenizer_has_its_own_sha256() -> None:
    others = [tokens.train_char(["ab"]), tokens.train_char(["ac"]), tokens.train_bpe(iter(["ab ab"]), 258)]
    assert len({tokenizer.sha256 for tokenizer in (gpt2(), trained(), *others)}) == 5


CHAR = {"kind": "char", "vocab_size": 3, "eot": 2, "characters": "ab"}
BPE = {"kind": "bpe", "vocab_size": 259, "eot": 258, "merges": [[64, 65], [256, 66]]}


def test_the_examples_that_are_damaged_below_are_sound() -> None:
    assert tokens.from_json(CHAR, "here").encode("ba").tolist() == [1, 0]
    assert tokens.from_json(BPE, "here").id_bytes()[256:] == [b"ab", b"abc", b""]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"null", b"[]", b'"gpt2"', b"{}"),
        {"kind": "word"},
        {"kind": ["gpt2"]},
        {"kind": "gpt2"},
        {"kind": "gpt2", "vocab_size": 50256, "eot": 50255},
        {"kind": "char", "vocab_size": 3, "eot": 2},
        *(CHAR | {"characters": wrong} for wrong in ("ba", "aa", "abc", 5, None, ["a", "b"], "a\ud800")),
        CHAR | {"eot": 1},
        CHAR | {"vocab_size": "3"},
        {"kind": "bpe", "vocab_size": 259, "eot": 258},
        *(
            BPE | {"merges": wrong}
            for wrong in (
                *(None, 5, {}, "ab", [64, 65], [[64, 65]], [[64], [65]], [[64, 65], [1, 2, 3]]),
                *([[64, 65], [257, 66]], [[64, 65], [-1, 66]], [[64, 65], [64, 65]], [[64, 65], [64, 2**70]]),
                *([[64, 65], [256.5, 66]], [["64", "65"], ["256", "66"]]),
            )
        ),
    ],
)
def test_a_damaged_tokenizer_is_refused(content: bytes | dict, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        tokens.load(path)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        tokens.load(tmp_path / "tokenizer.json")
