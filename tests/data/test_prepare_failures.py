"""Wrong options, unusable text and full disks: `prepare` names the error and leaves no files behind."""

import errno
import hashlib
import io
from pathlib import Path

import pytest
from tests.data.small_corpus import contents, corpus, some_documents

from overnight.data import documents, shards
from overnight.data import prepare as preparing
from overnight.data.prepare import prepare
from overnight.errors import Failure, UserError


def test_every_wrong_option_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        prepare("stdlib", tmp_path / "data", "chr", workers=0, shard_tokens=0)
    assert str(refusal.value).split("\n") == [
        "--workers is 0: give 1 or more.",
        "--shard-tokens is 0: give 1 to 2,147,483,647.",
        "--tokenizer chr: no such kind or file. Did you mean char? "
        "Give gpt2, char, bpe:N or a tokenizer.json.",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bpe:256", "bpe:", "bpe:x", "bpe:-5", "bpe:1e4", "bpe:1048577"])
def test_a_vocabulary_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--tokenizer {name}: give bpe:N with N from 257"):
        prepare("stdlib", tmp_path / "data", name, workers=1, shard_tokens=100)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["", ""], "has no text in it: nothing to prepare"),
        (["a"], "is too small to split: 1 tokens of training and 1 of validation"),
        (["a"] * 100, "is too small to split"),  # equal documents are all in one split
    ],
)
def test_too_little_text_is_refused_and_leaves_nothing(texts: list[str], says: str, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", texts)
    with pytest.raises(UserError, match=says):
        prepare(source, tmp_path / "new" / "data", "char", 1, 10**8)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.usefixtures("small_pieces")
def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "corpus", some_documents(300))
    (tmp_path / "corpus" / "z.txt").write_bytes(b"\xff")
    written = []
    finish = shards.ShardWriter._finish
    monkeypatch.setattr(
        shards.ShardWriter, "_finish", lambda self: (written.append(len(self)), finish(self))[1]
    )
    with pytest.raises(UserError, match=r"z\.txt is not UTF-8") as refusal:
        prepare(source, tmp_path / "new" / "er" / "data", "gpt2", 1, shard_tokens=100)
    assert not isinstance(refusal.value, Failure)
    assert len(written) > 3  # the middle it was
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_character_unknown_to_the_tokenizer_leaves_nothing(prepared: Path, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", ["to be é"])
    with pytest.raises(UserError, match=r"the character 'é' \(U\+00E9\)"):
        prepare(source, tmp_path / "data", str(prepared / "tokenizer.json"), 1, 10**8)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


@pytest.mark.parametrize(
    ("where", "what"),
    [(shards.ShardWriter, "append"), (shards.ShardWriter, "close"), (preparing, "write_synced")],
)
def test_a_full_disk_costs_nothing(where: object, what: str, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, what, full)
        with pytest.raises(Failure, match=r"^preparing .*data: the disk is full\. Free some space"):
            prepare(source, tmp_path / "new" / "data", "char", 1, 10**8)
    assert not (tmp_path / "new" / "data").exists()
    prepare(source, tmp_path / "new" / "data", "char", 1, 10**8)
    prepare(source, tmp_path / "undisturbed", "char", 1, 10**8)
    assert contents(tmp_path / "new" / "data") == contents(tmp_path / "undisturbed")


def test_a_disk_full_of_a_download_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"play"))
    monkeypatch.setattr(documents, "SHAKESPEARE_SHA256", hashlib.sha256(b"play").hexdigest())
    monkeypatch.setattr(documents, "write_synced", full)
    with pytest.raises(Failure, match="the disk is full"):
        prepare("shakespeare", tmp_path / "data", "char", 1, 10**8)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("all my work")
    with pytest.raises(UserError, match="file"):
        prepare("stdlib", tmp_path / "file" / "data", "char", 1, 10**8)
    assert (tmp_path / "file").read_text() == "all my work"
