import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.editing import edit

from overnight.data import documents, readers, shards, staging
from overnight.data import prepare as preparing
from overnight.data.manifest import BY_FIRST_SHARD, Data
from overnight.data.prepare import prepare
from overnight.data.tokens import Tokenizer
from overnight.errors import Failure, UserError


def corpus(folder: Path, texts: list[str]) -> str:
    """The SOURCE of some documents, written to one .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"text:{folder}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(data: Data, split: str) -> list[int]:
    return data.split(split).read(0, len(data.split(split))).tolist()


def at_endoftext(data: Data, row: list[int]) -> list[str]:
    """The text before the first <|endoftext|> of a row of tokens, and that behind each."""
    parts: list[list[int]] = [[]]
    for token in row:
        if token == data.tokenizer.eot:
            parts.append([])
        else:
            parts[-1].append(token)
    return [data.tokenizer.decode(part) for part in parts]


def held_out(text: str) -> bool:
    """The rule of the split, said once more: SHA-256's first 64 bits are a multiple of 20."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 20 == 0


def some_documents(count: int) -> list[str]:
    """Documents of different lengths with all kinds of characters."""
    words = ["the", "cat's", "mat,", "漢字", "año", "\n", "😀", "(x", "+", "1234)", "<|endoftext|>"]
    return [" ".join(random.Random(i).choices(words, k=1 + i % 50)) + f" {i}" for i in range(count)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if documents were much longer than what is held and handed out at a time."""
    monkeypatch.setattr(readers, "BLOCK", 200)
    monkeypatch.setattr(preparing, "BATCH", 300)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [90, 300], ids=["few", "many"])
def test_the_number_of_workers_changes_no_byte(count: int, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(count))
    made = []
    for workers in (1, 2, 3):
        prepare(source, tmp_path / str(workers), "bpe:300", workers, shard_tokens=500)
        made.append(contents(tmp_path / str(workers)))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 5


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
def test_each_document_follows_an_endoftext_and_their_order_is_kept(tmp_path: Path) -> None:
    texts = some_documents(99)
    data = prepare(corpus(tmp_path / "corpus", texts), tmp_path / "data", "gpt2", 2, shard_tokens=500)
    border = len(data.split("train"))
    assert border == (border + len(data.split("val"))) * 9 // 10
    assert at_endoftext(data, ids(data, "train") + ids(data, "val")) == ["", *texts]


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


@pytest.mark.parametrize("count", [90, 300], ids=["few", "many"])
def test_small_shards_hold_the_same_tokens_as_a_large_one(count: int, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(count))
    large = prepare(source, tmp_path / "large", "char", 1, 10**8)
    small = prepare(source, tmp_path / "small", "char", 1, 97)
    assert len(large.manifest.shards) == 2
    for split in ("train", "val"):
        counts = [shard["tokens"] for shard in small.manifest.shards if shard["split"] == split]
        assert set(counts[:-1]) == {97}
        assert 0 < counts[-1] <= 97
        assert ids(small, split) == ids(large, split)


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


def test_a_tokenizer_file_is_used_as_it_is(prepared: Path, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", ["the question is not to be"])
    data = prepare(source, tmp_path / "data", str(prepared / "tokenizer.json"), 1, 10**8)
    assert data.tokenizer.sha256 == Data(prepared).tokenizer.sha256
    copied = shutil.copy(prepared / "tokenizer.json", tmp_path)
    assert prepare(source, tmp_path / "data", copied, 1, 10**8).fingerprint == data.fingerprint
    assert "".join(data.tokenizer.decode(ids(data, split)) for split in ("train", "val")) == (
        "the question is not to be"
    )


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


# --- All or nothing


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


# --- Again, and beside others


def test_what_is_finished_is_left_alone(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    data = Data(folder)
    again = prepare(data.manifest.source, folder, "char", workers=2, shard_tokens=300)
    assert again.fingerprint == data.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_standard_library_is_not_prepared_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "stdlib_files", lambda: [Path(json.__file__), Path(json.decoder.__file__)])
    first = prepare("stdlib", tmp_path / "data", "char", 1, 10**8)
    version = "{}.{}.{}".format(*sys.version_info)
    assert first.manifest.source == f"stdlib of Python {version}"
    before = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    prepare("stdlib", tmp_path / "data", "char", 1, 10**8)
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == before
    other = {"source": "stdlib of Python 2.7.18"}
    edit(tmp_path / "data" / "manifest.json", lambda manifest: manifest["request"].update(other))
    with pytest.raises(UserError, match=rf"source stdlib of Python 2\.7\.18, not stdlib of Python {version}"):
        prepare("stdlib", tmp_path / "data", "char", 1, 10**8)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer char, not gpt2"),
        ({"shard_tokens": 301}, "shard_tokens 300, not 301"),
        ({"source": "shakespeare"}, "source text:.*, not shakespeare"),
        ({"source": "text:other.txt"}, "source text:.*, not text:other.txt; its files have changed since"),
    ],
)
def test_other_data_is_not_overwritten(
    changed: dict, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("other.txt").write_text("other text")
    before = contents(folder)
    request = {"source": Data(folder).manifest.source, "tokenizer": "char", "shard_tokens": 300, "workers": 1}
    with pytest.raises(UserError, match=rf"copy holds other data \({says}\)"):
        prepare(out=folder, **(request | changed))
    assert contents(folder) == before


def test_data_of_files_that_have_changed_is_not_taken_for_theirs(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(20))
    prepare(source, tmp_path / "data", "char", 1, 10**8)
    corpus(tmp_path / "corpus", some_documents(21))
    with pytest.raises(UserError, match=r"data holds other data \(its files have changed since\)"):
        prepare(source, tmp_path / "data", "char", 1, 10**8)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = corpus(tmp_path / "corpus", ["ab", "ba", "abba"])
    assert ids(prepare(source, tmp_path / "data", "char", 1, 10**8), "val") == [1, 0]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_data_folder_is_not_overwritten(is_folder: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    precious = out / "thesis.tex" if is_folder else out
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("all my work")
    with pytest.raises(UserError, match="out exists and is no data folder: choose another --out"):
        prepare("stdlib", out, "char", 1, 10**8)
    assert precious.read_text() == "all my work"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("all my work")
    with pytest.raises(UserError, match="file"):
        prepare("stdlib", tmp_path / "file" / "data", "char", 1, 10**8)
    assert (tmp_path / "file").read_text() == "all my work"


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


# --- Going on


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


# --- As a process: kills, signals, memory

# A shell that starts pytest in the background has its children ignore Ctrl-C: undo that.
OVERNIGHT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from overnight.cli import main
main()
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SOURCE that takes GPT-2's tokenizer a second or more: one document of 6 MB."""
    path = tmp_path_factory.mktemp("novel") / "novel.txt"
    words = random.Random(0).choices(
        ["the ", "quick ", "brown ", "fox's ", "jumps, ", "1234 ", "año\n"], k=10**5
    )
    path.write_text("".join(words) * 10)
    return f"text:{path}"


@contextlib.contextmanager
def started(source: str, out: Path, until: Callable[[int], bool]) -> Iterator[subprocess.Popen]:
    """`overnight prepare` in a session of its own, come as far as `until` (told its process id) says."""
    command = [sys.executable, "-c", OVERNIGHT, "prepare", source, "--out", str(out)]
    command += ["--tokenizer", "gpt2", "--workers", "1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        while not until(process.pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def writing(out: Path) -> Callable[[int], bool]:
    """Whether a shard is being written."""
    return lambda _: any(out.with_name(f".{out.name}.partial").glob("*.bin"))


@POSIX
def test_a_killed_prepare_goes_on(novel: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    for _ in range(2):
        with started(novel, out, writing(out)) as process:
            process.kill()
            process.wait()
            assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]
    prepare(novel, out, "gpt2", 2, 10**8)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    prepare(novel, tmp_path / "undisturbed", "gpt2", 2, 10**8)
    assert contents(out) == contents(tmp_path / "undisturbed")


@POSIX
def test_a_killed_prepare_leaves_no_workers_behind(novel: str, tmp_path: Path) -> None:
    """Its output stays open as long as any of them lives."""
    out = tmp_path / "data"
    with started(novel, out, writing(out)) as process:
        process.kill()
        process.communicate(timeout=10)


@POSIX
@pytest.mark.parametrize(
    ("stop", "number", "code", "says"),
    [
        (os.killpg, signal.SIGINT, 130, "interrupted"),
        (os.kill, signal.SIGINT, 130, "interrupted"),
        (os.kill, signal.SIGTERM, 75, "stopped by SIGTERM."),
        (os.killpg, signal.SIGTERM, 75, "stopped by SIGTERM."),
    ],
    ids=["Ctrl-C", "SIGINT", "SIGTERM", "SIGTERM to all"],
)
def test_an_interrupted_prepare_says_how_to_go_on(
    stop: Callable[[int, int], None], number: int, code: int, says: str, novel: str, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "data"
    with started(novel, out, writing(out)) as process:
        stop(process.pid, number)
        kept = f"What is done is kept in {out.parent}/.data.partial: the same command goes on from there.\n"
        assert process.communicate(timeout=30) == ("", f"{kept}overnight: {says}\n")
        assert process.returncode == code
    assert prepare(novel, out, "gpt2", 2, 10**8).manifest.documents == 1


def children(parent: int) -> Path:
    """Linux's list of the processes that a process has started."""
    return Path(f"/proc/{parent}/task/{parent}/children")


def worker_begins(parent: int) -> bool:
    """Whether a process has a worker that is still importing what it needs."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")  # workers are started by threads
    started = [Path("/proc", child) for path in lists for child in path.read_text().split()]
    workers = [child for child in started if b"spawn_main" in (child / "cmdline").read_bytes()]
    return any("numpy" in (worker / "maps").read_text() for worker in workers)


@pytest.mark.skipif(not children(os.getpid()).exists(), reason="needs Linux's list of child processes")
def test_ctrl_c_while_workers_start_is_no_traceback(novel: str, tmp_path: Path) -> None:
    with started(novel, tmp_path / "data", worker_begins) as process:
        os.killpg(process.pid, signal.SIGINT)
        said, error = process.communicate(timeout=30)
        assert (said, error.splitlines()[-1]) == ("", "overnight: interrupted")
        assert "Traceback" not in error
        assert process.returncode == 130


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)  # of the largest, in KiB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    """60 MB in one document: encoded all at once, its characters (4 bytes each) and ids (8) take 720 MB."""
    line = "".join(random.Random(0).choices("abcdefgh \n", k=10**6))
    with open(tmp_path / "long.txt", "w") as file:
        for _ in range(60):
            file.write(line)
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "overnight", "prepare"]
    command += [f"text:{tmp_path / 'long.txt'}", "--out", str(tmp_path / "data"), "--tokenizer", "char"]
    command += ["--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Data(tmp_path / "data").manifest.bytes == 60 * 10**6
    assert int(done.stdout.split()[-1]) < 400 * 1024
