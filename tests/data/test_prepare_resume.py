"""An interrupted `prepare` resumes from a partial folder that is sound, unlocked and of the same data."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.data.small_corpus import contents, corpus, some_documents

from overnight.data import documents, shards, staging
from overnight.data import prepare as preparing
from overnight.data.manifest import BY_FIRST_SHARD
from overnight.data.prepare import prepare
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError


class Crash(BaseException):
    """As if the process had ended here."""


class Crashing:
    """Counts what `prepare` does to the disk and ends it at the `at`-th time."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int):
        self.left = at
        self.pieces = 0  # that were tokenised
        for where, what in [
            (shards.ShardWriter, "_finish"), (preparing, "write_synced"),
            (preparing, "manifest"), (staging, "sync"), (os, "rename"), (Path, "unlink"),
        ]:  # fmt: skip
            patch.setattr(where, what, self.counted(getattr(where, what)))
        patch.setattr(preparing, "in_order", self.here)
        patch.setattr(preparing, "COMMIT_EVERY", 0)

    def counted(self, action: Callable) -> Callable:
        def act(*arguments: object, **options: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise Crash
            return action(*arguments, **options)

        return act

    def here(self, batches: Iterator, tokenizer: Tokenizer, workers: int) -> Iterator:
        """`in_order` without processes, which take a third of a second to start."""
        for place, batch in batches:
            self.pieces += len(batch)
            yield place, [(first, held_out, tokenizer.encode(text)) for first, held_out, text in batch]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("rule", "short", "tokenizer"),
    [(None, 0, "bpe:300"), (None, 100, "gpt2"), (BY_FIRST_SHARD, 0, "gpt2")],
    ids=["few", "many", "first shard"],
)
def test_after_a_crash_anywhere_it_goes_on_to_the_same_bytes(
    rule: str | None, short: int, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its actions in turn."""
    monkeypatch.setattr(documents.Source, "split", rule)
    source = corpus(tmp_path / "corpus", some_documents(25) + [f"No. {i}" for i in range(short)])
    (tmp_path / "corpus" / "more.txt").write_text(" ".join(some_documents(9)))
    prepare(source, tmp_path / "undisturbed", tokenizer, 1, 97)
    out = tmp_path / "data"
    for at in range(1, 10_000):
        with monkeypatch.context() as patch:
            Crashing(patch, at)
            with contextlib.suppress(Crash):
                prepare(source, out, tokenizer, 1, 97)
                break
        with monkeypatch.context() as patch:
            Crashing(patch, -1)
            prepare(source, out, tokenizer, 1, 97)
        assert contents(out) == contents(tmp_path / "undisturbed")
        shutil.rmtree(out)
    assert at > 25
    assert not (tmp_path / ".data.partial").exists()


@pytest.mark.usefixtures("small_pieces")
def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crash after crash: all in all, no more than a batch a crash is tokenised twice."""
    source = corpus(tmp_path / "corpus", some_documents(150))
    documents_done, crashes, tokenised = [], 0, 0
    for _ in range(1000):
        with monkeypatch.context() as patch:
            crashing = Crashing(patch, 12)
            try:
                prepare(source, tmp_path / "data", "gpt2", 1, 500)
                break
            except Crash:
                crashes += 1
        tokenised += crashing.pieces
        reached = json.loads((tmp_path / ".data.partial" / "progress.json").read_text())
        documents_done.append(reached["place"]["documents"])
    assert crashes >= 5
    assert documents_done == sorted(documents_done)
    assert len(set(documents_done)) >= 4
    with monkeypatch.context() as patch:
        once = Crashing(patch, -1)
        prepare(source, tmp_path / "undisturbed", "gpt2", 1, 500)
    assert tokenised <= once.pieces + crashes * 15
    assert contents(tmp_path / "data") == contents(tmp_path / "undisturbed")


def interrupted(source: str, out: Path, patch: pytest.MonkeyPatch) -> Path:
    """The folder that a crash in the middle leaves."""
    with patch.context() as context:
        Crashing(context, 25)
        with pytest.raises(Crash):
            prepare(
                **({"source": source, "out": out, "tokenizer": "gpt2", "workers": 1, "shard_tokens": 500})
            )
    return out.with_name(f".{out.name}.partial")


@pytest.mark.usefixtures("small_pieces")
def test_the_beginning_of_other_data_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "corpus", some_documents(150))
    partial = interrupted(source, tmp_path / "data", monkeypatch)
    before = contents(partial)
    with pytest.raises(UserError, match=r"holds the beginning of other data \(tokenizer gpt2, not char\)"):
        prepare(source, tmp_path / "data", "char", 1, 500)
    corpus(tmp_path / "corpus", some_documents(151))
    with pytest.raises(UserError, match=r"other data \(its files have changed since\)\.\nRun that command"):
        prepare(source, tmp_path / "data", "gpt2", 1, 500)
    assert contents(partial) == before


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["progress.json", "tokenizer.json", "train_000001.bin", "val_000000.bin"])
def test_a_damaged_beginning_is_named_and_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(tmp_path / "corpus", some_documents(150))
    partial = interrupted(source, tmp_path / "data", monkeypatch)
    (partial / name).write_bytes(b"{}")
    before = sorted(contents(partial))
    with pytest.raises(UserError, match=r"damaged.*remove"):
        prepare(source, tmp_path / "data", "gpt2", 1, 500)
    assert sorted(contents(partial)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock")
def test_two_at_once_are_refused(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(20))
    out = tmp_path / "data"
    with contextlib.suppress(Crash), staging.staging(out, {}) as partial:
        (partial / "train_000009.bin").write_bytes(b"in the making")
        with pytest.raises(UserError, match=r"another `overnight prepare` is writing .*data: wait"):
            prepare(source, out, "char", 1, 10**8)
        assert contents(partial) == {"train_000009.bin": b"in the making"}
        raise Crash


def test_what_a_kill_has_left_before_anything_counted_is_cleared_away(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(20))
    partial = tmp_path / ".data.partial"
    partial.mkdir()
    (partial / "train_000009.bin").write_bytes(b"in the making")
    prepare(source, tmp_path / "data", "char", 1, 10**8)
    assert not partial.exists()
    assert "train_000009.bin" not in contents(tmp_path / "data")
