"""`overnight prepare`: documents -> tokens in worker processes -> a finished data folder, or none at all."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from overnight.data import documents, tokens
from overnight.data.encode import Batch, in_order
from overnight.data.manifest import MANIFEST, TOKENIZER, Data, Manifest
from overnight.data.shards import ShardWriter, Tokens, open_shard
from overnight.errors import UserError, near
from overnight.files import clear_disk_errors, parent_problem, sync, to_json, write_synced
from overnight.terminal import Status, duration, size

FEW_DOCUMENTS = 100  # below this, validation is the end of the tokens, not a choice of documents
VAL_ONE_IN = 20
BATCH = 1 << 20  # characters that a worker gets at a time
BPE_SAMPLE = 64 << 20  # characters that a `bpe:N` tokenizer learns from at most

BY_HASH = f"documents whose SHA-256 is 0 modulo {VAL_ONE_IN}"
BY_TAIL = "the last tenth of the tokens"


def default_tokenizer(source: str) -> str:
    """What `--tokenizer` is when it is not given."""
    return {"stdlib": "bpe:2048", "shakespeare": "char"}.get(source, "gpt2")


def prepare(source: str, out: Path, tokenizer: str, workers: int, shard_tokens: int) -> Data:
    """Make the data folder `out`; when this returns it is whole, and on any error it does not exist.

    The bytes written depend on the source, the tokenizer and `shard_tokens` only, not on `workers`.
    Raises UserError on wrong input, Failure when the disk is full.
    """
    problems = []
    if workers < 1:
        problems.append(f"--workers is {workers}: give 1 or more.")
    if not 1 <= shard_tokens < 2**31:
        problems.append(f"--shard-tokens is {shard_tokens}: give 1 to {2**31 - 1:,}.")
    if problem := parent_problem(out):
        problems.append(problem)
    make = tokenizer_maker(tokenizer, problems)
    if problems:
        raise UserError(*problems)
    known = Path(tokenizer).is_file()
    request: dict[str, Any] = {
        "source": source,
        "tokenizer": tokens.load(Path(tokenizer)).sha256 if known else tokenizer,
        "shard_tokens": shard_tokens,
    }
    if source == "shakespeare" and (done := already_there(out, request)) is not None:
        return done  # also without the file that it was made from
    with clear_disk_errors(f"preparing {out}"):
        found = documents.find(source, downloads=out.parent / "downloads")
    request |= {"source": found.name, "files": found.fingerprint}
    if (done := already_there(out, request)) is not None:
        return done
    with clear_disk_errors(f"preparing {out}"), staging(out) as folder:
        build(found, folder, request, make, workers, shard_tokens)
        sync(folder)
        if out.is_dir():
            out.rmdir()  # empty, or `already_there` would have refused
        os.rename(folder, out)
        sync(out.parent)
    return Data(out)


def already_there(out: Path, request: dict[str, Any]) -> Data | None:
    """The finished data folder `out`, if it was made by the same request; refused if it holds another."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is no data folder: choose another --out.")
    data = Data(out)
    have = data.manifest.request
    different = [
        "its files have changed since" if key == "files" else f"{key} {have.get(key)}, not {value}"
        for key, value in request.items()
        if have.get(key) != value
    ]
    if different:
        raise UserError(
            f"{out} holds other data ({'; '.join(different)}).",
            "Choose another --out, or remove it to make it anew.",
        )
    return data


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to build in: gone on any error; one that a kill left is cleared away.
    One `prepare` at a time works on one `out`."""
    folder = out.parent / f".{out.name}.partial"
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    if lock is None:
        raise UserError(f"another `overnight prepare` is writing {out}: wait for it to end.")
    previous = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        for leftover in folder.iterdir():
            leftover.unlink()
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:  # nothing is left behind, not even empty folders
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        if lock >= 0:
            os.close(lock)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until this process ends or closes what is returned; None if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: there, nothing guards against a second `prepare`
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:  # not one that its owner has just renamed
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


TokenizerMaker = Callable[[Iterable[documents.Piece], Iterable[documents.Piece]], tokens.Tokenizer]


def tokenizer_maker(name: str, problems: list[str]) -> TokenizerMaker:
    """`--tokenizer` -> a function of (all pieces, training pieces); a wrong name becomes a problem."""
    if name == "gpt2":
        return lambda _all, _train: tokens.gpt2()
    if name == "char":
        return lambda everything, _train: tokens.train_char(piece.text for piece in everything)
    if name.startswith("bpe:"):
        count = name.removeprefix("bpe:").replace(",", "").replace("_", "")
        if not count.isdecimal() or not 257 <= int(count) <= 2**20:
            problems.append(f"--tokenizer {name}: give bpe:N with N from 257 (the bytes alone) to {2**20:,}.")
        return lambda _all, train: tokens.train_bpe(sample(train), int(count))
    path = Path(name)
    if not path.is_file():
        hint = near(name, ["gpt2", "char", "bpe:4096"])
        problems.append(
            f"--tokenizer {name}: no such kind or file.{hint} Give gpt2, char, bpe:N or a tokenizer.json."
        )
        return lambda _all, _train: tokens.gpt2()
    loaded = tokens.load(path)
    return lambda _all, _train: loaded


def sample(pieces: Iterable[documents.Piece]) -> Iterator[str]:
    """The first 64 Mi characters of the pieces: enough to learn merges from, and bounded in memory."""
    seen = 0
    for piece in pieces:
        yield piece.text
        seen += len(piece.text)
        if seen >= BPE_SAMPLE:
            return


def build(
    source: documents.Source,
    folder: Path,
    request: dict[str, Any],
    make: TokenizerMaker,
    workers: int,
    shard_tokens: int,
) -> None:
    """Fill `folder` with shards, tokenizer.json and manifest.json."""
    few = sum(1 for _ in islice((piece for piece in source if piece.first), FEW_DOCUMENTS)) < FEW_DOCUMENTS
    in_validation = (lambda piece: False) if few else chosen_for_validation
    status = Status()
    training = first_nine_tenths(source) if few else outside_validation(source)
    tokenizer = make(watched(source, status, "characters"), watched(training, status, "merges"))
    counts = {"documents": 0, "bytes": 0}
    started = time.monotonic()

    def batches() -> Iterator[Batch]:
        """Pieces in lots of about BATCH characters, each with its split."""
        batch, held, validation = [], 0, False
        for piece in source:
            if piece.first:
                counts["documents"] += 1
                validation = in_validation(piece)
            counts["bytes"] += len(piece.text.encode("utf-8"))
            batch.append((piece.first, validation, piece.text))
            held += len(piece.text)
            if held >= BATCH:
                yield batch
                batch, held = [], 0
                status.update(lambda: progress(counts["bytes"], source, started))
        if batch:
            yield batch

    whole = 2**31 - 1 if few else shard_tokens
    train = ShardWriter(folder, "all" if few else "train", 1, whole, tokenizer.dtype)
    val = ShardWriter(folder, "val", 0, shard_tokens, tokenizer.dtype)
    eot = np.array([tokenizer.eot], dtype=tokenizer.dtype)
    for encoded in in_order(batches(), tokenizer, workers):
        for first, validation, ids in encoded:
            writer = val if validation else train
            if first:
                writer.append(eot)
            writer.append(ids)
    status.clear()
    if counts["documents"] == 0:
        raise UserError(f"{source.name} has no text in it: nothing to prepare.")
    shards = split_tail(folder, train, shard_tokens) if few else [*train.close(), *val.close()]
    totals = {
        split: sum(shard["tokens"] for shard in shards if shard["split"] == split)
        for split in ("train", "val")
    }
    if min(totals.values()) < 2:
        raise UserError(
            f"{source.name} is too small to split: {totals['train']} tokens of training and "
            f"{totals['val']} of validation. Add text."
        )
    described = tokenizer.to_json()
    write_synced(folder / TOKENIZER, to_json(described) if tokenizer.kind != "bpe" else compact(described))
    manifest = Manifest(
        source=source.name,
        request=request,
        documents=counts["documents"],
        tokens=totals,
        bytes=counts["bytes"],
        dtype=tokenizer.dtype.name,
        split=BY_TAIL if few else BY_HASH,
        tokenizer={
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "sha256": tokenizer.sha256,
        },
        shards=shards,
    )
    write_synced(folder / MANIFEST, to_json(manifest.to_json()))


def watched(pieces: Iterable[documents.Piece], status: Status, what: str) -> Iterator[documents.Piece]:
    """The same pieces, with a line about them while they are read."""
    seen = 0
    for piece in pieces:
        seen += len(piece.text)
        line = f"reading the text for its {what}: {seen / 1e6:,.0f} M characters"
        status.update(lambda line=line: line)  # type: ignore[misc]
        yield piece
    status.clear()


def compact(described: dict[str, Any]) -> str:
    """JSON on one line: thousands of merges are not for reading."""
    return json.dumps(described, separators=(",", ":")) + "\n"


def progress(done: int, source: documents.Source, started: float) -> str:
    seconds = time.monotonic() - started
    line = f"{size(done)} of text, {size(done / max(seconds, 1e-9))}/s"
    if any(path.suffix == ".gz" for path in source.paths):
        return line  # nobody knows how much text compressed files hold
    left = seconds / done * max(0, source.size - done)
    return f"{line}, {100 * min(1, done / source.size):.0f}%, {duration(left)} left"


def chosen_for_validation(piece: documents.Piece) -> bool:
    """One document in 20, by content. Of a document longer than a piece (1 Mi characters), the first."""
    return int.from_bytes(hashlib.sha256(piece.text.encode("utf-8")).digest()[:8], "big") % VAL_ONE_IN == 0


def outside_validation(source: documents.Source) -> Iterator[documents.Piece]:
    validation = False
    for piece in source:
        validation = chosen_for_validation(piece) if piece.first else validation
        if not validation:
            yield piece


def first_nine_tenths(source: documents.Source) -> Iterator[documents.Piece]:
    """The training part where validation is the last tenth of tokens that do not exist yet: the first nine
    tenths of the characters, which is not the same place to the letter."""
    left = sum(len(piece.text) for piece in source) * 9 // 10
    for piece in source:
        yield documents.Piece(piece.text[:left], piece.first)
        left -= len(piece.text)
        if left <= 0:
            return


def split_tail(folder: Path, everything: ShardWriter, shard_tokens: int) -> list[dict]:
    """Cut the tokens written so far into nine tenths of training and one of validation."""
    paths = [folder / shard["file"] for shard in everything.close()]
    row = Tokens([open_shard(path) for path in paths])
    border = len(row) * 9 // 10
    shards = []
    for split, first, start, end in (("train", 1, 0, border), ("val", 0, border, len(row))):
        writer = ShardWriter(folder, split, first, shard_tokens, everything.dtype)
        for at in range(start, end, BATCH):
            writer.append(row.read(at, min(BATCH, end - at)))
        shards += writer.close()
    del row  # Windows removes no file that is still mapped
    for path in paths:
        path.unlink()
    return shards
