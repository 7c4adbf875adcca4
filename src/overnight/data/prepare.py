"""`overnight prepare`: documents -> tokens in worker processes -> a finished data folder.

Every few seconds the tokens so far are synced and progress.json says how many of them count and where in the
source they end. Whatever ends the work in between, the same command cuts back to there and goes on.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from overnight.data import documents, tokens
from overnight.data.encode import Batch, in_order
from overnight.data.manifest import BY_FIRST_SHARD, MANIFEST, TOKENIZER, Data
from overnight.data.readers import Piece
from overnight.data.shards import count_of
from overnight.data.splits import BY_HASH, BY_TAIL, FEW_DOCUMENTS, Splits, chosen_for_validation, manifest
from overnight.data.staging import (
    PROGRESS,
    SCRATCH,
    LeftAsItIs,
    already_there,
    differences,
    partial,
    request_of,
    staging,
)
from overnight.errors import UserError, near
from overnight.files import clear_disk_errors, parent_problem, read_json, sealed, to_json, write_synced
from overnight.terminal import Status, duration, size
from overnight.visible import as_json

BATCH = 1 << 20  # characters that a worker gets at a time
BPE_SAMPLE = 64 << 20  # characters that a `bpe:N` tokenizer learns from at most
COMMIT_EVERY = 10.0  # seconds: what an interruption costs at most


def default_tokenizer(source: str) -> str:
    """What `--tokenizer` is when it is not given."""
    return {"stdlib": "bpe:2048", "shakespeare": "char"}.get(source, "gpt2")


def prepare(
    source: str, out: Path, tokenizer: str, workers: int, shard_tokens: int, keep_downloads: bool = False
) -> Data:
    """Make the data folder `out`; when this returns it is whole, before that it does not exist.

    The bytes written depend on the source, the tokenizer and `shard_tokens` only, not on `workers` or on
    interruptions. Raises UserError on wrong input; Failure when the disk is full or the hub does not answer,
    after which the same call goes on.
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
    source = documents.full_name(source)
    known = Path(tokenizer).is_file()
    request: dict[str, Any] = {
        "source": source,
        "tokenizer": tokens.load(Path(tokenizer)).sha256 if known else tokenizer,
        "shard_tokens": shard_tokens,
    }
    elsewhere = source == "shakespeare" or documents.on_the_hub(source)
    if documents.on_the_hub(source) and tokenizer == "char" and not keep_downloads:
        raise UserError(
            f"--tokenizer char reads all of {source} before the first token: add --keep-downloads,",
            "if the disk holds all of it.",
        )
    if elsewhere and (done := already_there(out, request)) is not None:
        return done  # also without what it was made from
    begun = request_of(partial(out)) if elsewhere else None
    revision = begun["files"] if begun is not None and not differences(begun, request) else None
    with clear_disk_errors(f"preparing {out}"):
        found = documents.find(source, out.parent / "downloads", revision, keep_downloads)
    request |= {"source": found.name, "files": found.fingerprint}
    if (done := already_there(out, request)) is not None:
        return done
    if found.split == BY_FIRST_SHARD and tokenizer.startswith(("bpe:", "char")):
        raise UserError(
            f"{source} is split by counting tokens, so its tokenizer has to be there first:",
            "--tokenizer gpt2, or the tokenizer.json of other data.",
        )
    with clear_disk_errors(f"preparing {out}"), staging(out, request) as folder:
        build(found, folder, request, make, workers, shard_tokens)
    found.release(range(len(found)))
    return Data(out)


@dataclass(frozen=True)
class Place:
    """How far a source has been read: the first `pieces` of file number `file`, and what that came to."""

    file: int = 0
    pieces: int = 0
    documents: int = 0
    bytes: int = 0
    validation: bool = False
    """Where the document in hand goes."""


TokenizerMaker = Callable[[Iterable[Piece], Iterable[Piece]], tokens.Tokenizer]


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


def sample(pieces: Iterable[Piece]) -> Iterator[str]:
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
    """Fill `folder` with shards, tokenizer.json and manifest.json, or go on with it."""
    if (folder / MANIFEST).is_file():
        return  # it was whole, and only wanted its name
    source.begin(folder / SCRATCH)
    status = Status()
    if (folder / PROGRESS).is_file():
        splits, place = resume(folder, shard_tokens)
    else:
        rule = source.split or (BY_TAIL if has_few_documents(source) else BY_HASH)
        training = first_nine_tenths(source) if rule == BY_TAIL else outside_validation(source)
        tokenizer = make(watched(source, status, "characters"), watched(training, status, "merges"))
        write_tokenizer(folder, tokenizer)
        splits, place = Splits(folder, rule, shard_tokens, tokenizer), Place()
        commit(folder, request, splits, place)
    committed = time.monotonic()
    for reached, encoded in in_order(batches(source, place, splits.rule, status), splits.tokenizer, workers):
        for first, validation, ids in encoded:
            splits.add(first, validation, ids)
        if time.monotonic() - committed >= COMMIT_EVERY:
            commit(folder, request, splits, reached)
            source.release(range(reached.file))
            committed = time.monotonic()
        last = reached
    status.clear()
    commit(folder, request, splits, last)
    complete(folder, request, splits, last.documents, last.bytes, source.details())


def complete(
    folder: Path,
    request: dict[str, Any],
    splits: Splits,
    documents: int,
    text_bytes: int,
    details: dict[str, Any],
) -> None:
    """Finish the shards and write the manifest, with which the folder is whole."""
    if documents == 0:
        raise UserError(f"{request['source']} has no text in it: nothing to prepare.")
    shards = splits.close(request["source"])
    made = manifest(shards, splits.tokenizer, request, splits.rule, documents, text_bytes, details)
    write_synced(folder / MANIFEST, sealed(made.to_json()))


def write_tokenizer(folder: Path, tokenizer: tokens.Tokenizer) -> None:
    """tokenizer.json; thousands of merges are not for reading and stand on one line."""
    described = tokenizer.to_json()
    compact = json.dumps(described, separators=(",", ":")) + "\n"
    write_synced(folder / TOKENIZER, compact if tokenizer.kind == "bpe" else to_json(described))


def commit(folder: Path, request: dict[str, Any], splits: Splits, place: Place) -> None:
    """From now on the work goes on from `place`."""
    reached = {"request": request, "split": splits.rule, "place": asdict(place), "shards": splits.sync()}
    write_synced(folder / PROGRESS, sealed(reached))


def resume(folder: Path, shard_tokens: int) -> tuple[Splits, Place]:
    """What `commit` left, with the shards cut back to it."""
    try:
        reached = read_json(folder / PROGRESS, "progress", seal=True)
        place = Place(**reached["place"])
        for name in ("file", "pieces", "documents", "bytes"):
            count_of(getattr(place, name), name)
        if type(place.validation) is not bool:
            raise ValueError(f"validation is {as_json(place.validation)}")
        splits = Splits(folder, reached["split"], shard_tokens, tokens.load(folder / TOKENIZER))
        splits.resume(reached["shards"])
        return splits, place
    except (OSError, KeyError, TypeError, ValueError, UserError) as error:
        raise LeftAsItIs(f"what was begun in {folder} is damaged ({error}): remove it.") from None


def batches(
    source: documents.Source, place: Place, rule: str, status: Status
) -> Iterator[tuple[Place, Batch]]:
    """The pieces from `place` on in lots of about BATCH characters, each with its split, and the place behind
    each lot."""
    batch: list[tuple[bool, bool, str]] = []
    held, began = 0, None
    for number in range(place.file, len(source)):
        skip = place.pieces if number == place.file else 0
        for taken, piece in enumerate(source.pieces(number, skip), skip + 1):
            if began is None:
                began = (time.monotonic(), source.progress, place.bytes)
            place = Place(
                file=number,
                pieces=taken,
                documents=place.documents + piece.first,
                bytes=place.bytes + len(piece.text.encode("utf-8")),
                validation=chosen_for_validation(piece.text)
                if piece.first and rule == BY_HASH
                else place.validation,
            )
            batch.append((piece.first, place.validation, piece.text))
            held += len(piece.text)
            if held >= BATCH:
                yield place, batch
                batch, held = [], 0
                status.update(lambda done=place.bytes, began=began: progress(done, source.progress, *began))  # type: ignore[misc]
    yield place, batch


def progress(done: int, fraction: float, started: float, fraction_before: float, done_before: int) -> str:
    """A line about bytes of text done and the fraction of the source read, given what both were at the
    start."""
    seconds = time.monotonic() - started
    line = f"{size(done)} of text, {size((done - done_before) / max(seconds, 1e-9))}/s, {100 * fraction:.0f}%"
    gained = fraction - fraction_before
    return f"{line}, {duration(seconds / gained * (1 - fraction))} left" if gained > 0 else line


def has_few_documents(source: documents.Source) -> bool:
    return sum(1 for _ in islice((piece for piece in source if piece.first), FEW_DOCUMENTS)) < FEW_DOCUMENTS


def watched(pieces: Iterable[Piece], status: Status, what: str) -> Iterator[Piece]:
    """The same pieces, with a line about them while they are read."""
    seen = 0
    for piece in pieces:
        seen += len(piece.text)
        line = f"reading the text for its {what}: {seen / 1e6:,.0f} M characters"
        status.update(lambda line=line: line)  # type: ignore[misc]
        yield piece
    status.clear()


def outside_validation(source: documents.Source) -> Iterator[Piece]:
    validation = False
    for piece in source:
        validation = chosen_for_validation(piece.text) if piece.first else validation
        if not validation:
            yield piece


def first_nine_tenths(source: documents.Source) -> Iterator[Piece]:
    """The training part where validation is the last tenth of tokens that do not exist yet: the first nine
    tenths of the characters, which is not the same place to the letter."""
    left = sum(len(piece.text) for piece in source) * 9 // 10
    for piece in source:
        yield Piece(piece.text[:left], piece.first)
        left -= len(piece.text)
        if left <= 0:
            return
