"""Which tokens are the validation split; byte pairs are learnt from the training split only."""

import hashlib
from pathlib import Path

import pytest
from tests.data.small_corpus import at_endoftext, contents, corpus, ids, some_documents

from overnight.data.prepare import prepare


def held_out(text: str) -> bool:
    """The rule of the split, said once more: SHA-256's first 64 bits are a multiple of 20."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 20 == 0


def test_few_documents_are_split_at_the_last_tenth_of_their_tokens(tmp_path: Path) -> None:
    """a is 0, b is 1, <|endoftext|> is 2; nine tenths of the 11 tokens are 9."""
    source = corpus(tmp_path / "corpus", ["ab", "ba", "abba"])
    data = prepare(source, tmp_path / "data", "char", workers=1, shard_tokens=100)
    assert ids(data, "train") == [2, 0, 1, 2, 1, 0, 2, 0, 1]
    assert ids(data, "val") == [1, 0]
    made = data.manifest
    assert (made.source, made.documents, made.bytes, made.dtype) == (source, 3, 8, "uint16")
    assert made.tokens == {"train": 9, "val": 2}
    assert made.split == "the last tenth of the tokens"
    asked = {"source": source, "tokenizer": "char", "shard_tokens": 100}
    assert {key: made.request[key] for key in asked} == asked
    assert sorted(contents(tmp_path / "data")) == [
        "manifest.json", "tokenizer.json", "train_000001.bin", "val_000000.bin"
    ]  # fmt: skip


@pytest.mark.usefixtures("small_pieces")
def test_of_many_documents_each_is_in_one_split_by_its_hash(tmp_path: Path) -> None:
    texts = some_documents(1000)
    data = prepare(corpus(tmp_path / "corpus", texts), tmp_path / "data", "gpt2", 2, shard_tokens=10**8)
    validation = [text for text in texts if held_out(text)]
    assert 30 <= len(validation) <= 70
    assert at_endoftext(data, ids(data, "val")) == ["", *validation]
    assert at_endoftext(data, ids(data, "train")) == ["", *(text for text in texts if not held_out(text))]
    assert data.manifest.split == "documents whose SHA-256 is 0 modulo 20"
    assert data.manifest.documents == 1000
    assert data.manifest.bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    ("count", "rule"),
    [(99, "the last tenth of the tokens"), (100, "documents whose SHA-256 is 0 modulo 20")],
)
def test_a_hundred_documents_are_many(count: int, rule: str, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", [*some_documents(count - 1), "", "the last"])
    assert prepare(source, tmp_path / "data", "char", 1, 10**8).manifest.split == rule


def test_byte_pairs_are_learnt_from_training_documents_only(tmp_path: Path) -> None:
    validation = [text for i in range(600) if held_out(text := f"{i} " + "zyzzyva " * 20)]
    training = [text for i in range(200) if not held_out(text := f"{i} " + "quokka " * 20)]
    assert len(validation) > 10
    data = prepare(corpus(tmp_path / "corpus", validation + training), tmp_path / "data", "bpe:300", 1, 10**8)
    assert at_endoftext(data, ids(data, "val")) == ["", *validation]
    learnt = data.tokenizer.id_bytes()
    assert b" quokka" in learnt
    assert not [token for token in learnt if b"zy" in token]


def test_byte_pairs_of_few_documents_are_not_learnt_from_the_last_tenth(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", ["quokka " * 900 + "zyzzyva " * 80])
    learnt = prepare(source, tmp_path / "data", "bpe:300", 1, 10**8).tokenizer.id_bytes()
    assert b" quokka" in learnt
    assert not [token for token in learnt if b"zy" in token]
