"""Preparing on many machines: two steps for datatrove's pipelines (pip install 'overnight[cluster]').

    tokenise = SlurmPipelineExecutor([Tokenise("parts", "fineweb-edu:sample-10BT")], tasks=14, ...)
    finish = [Finish("parts", "data/fineweb-edu")]
    SlurmPipelineExecutor(finish, tasks=1, depends=tokenise, ...).run()

Each task tokenises some of the source's files, one part a file; the last step joins the parts in the order of
the files, which gives the bytes that `overnight prepare` gives. Behind datatrove's own readers and filters,
`Tokenise("parts")` takes their documents, and `Finish` a name for them. All machines must see the folders.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.lib.format import read_array

from overnight.data import SHARD_TOKENS, documents, fast, tokens
from overnight.data.prepare import FEW_DOCUMENTS, complete, write_tokenizer
from overnight.data.readers import Piece, pieces
from overnight.data.shards import count_of
from overnight.data.splits import BY_HASH, BY_TAIL, RULES, Splits, chosen_for_validation
from overnight.data.staging import already_there, staging
from overnight.errors import UserError
from overnight.files import open_new, open_regular, read_json, reason, sync, to_json, write_synced

TASK = re.compile(r"task_[0-9]+_of_[0-9]{1,9}\.json")
PART = re.compile(r"[0-9a-f]{16}")  # what a part's files are called
FIRST, VALIDATION = 1, 2  # bits of a piece's entry in a part's index


def named_tokenizer(name: str) -> tokens.Tokenizer:
    if name == "gpt2":
        return tokens.gpt2()
    if not Path(name).is_file():
        raise UserError(f"the tokenizer {name}: on many machines give gpt2 or a tokenizer.json.")
    return tokens.load(Path(name))


class Tokenise(PipelineStep):
    """Documents -> parts of tokens in the folder `parts`.

    With `source` (a SOURCE of `overnight prepare`) it is the first step and reads by itself; without, it
    takes the documents of the steps before it, file by file.
    """

    type, name = "overnight", "tokenise"

    def __init__(
        self, parts: str, source: str = "", tokenizer: str = "gpt2", downloads: str = "data/downloads"
    ):
        super().__init__()
        self.parts, self.tokenizer = Path(parts), tokenizer
        named_tokenizer(tokenizer)  # refused here, before anything is queued
        # Found once: every task reads the same revision.
        self.source = documents.find(source, Path(downloads)) if source else None

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the parts of one task, then a file that says which they are."""
        if (data is None) == (self.source is None):
            raise UserError("Tokenise needs a source, or a reader before it, and not both.")
        self.parts.mkdir(parents=True, exist_ok=True)
        tokenizer = named_tokenizer(self.tokenizer)
        encode = fast.encoder(tokenizer)
        files = self.own_files(rank, world_size) if data is None else files_of(data)
        written = [self.write(key, found, encode) for key, found in files]
        done: dict[str, Any] = {"parts": written, "tokenizer": tokenizer.to_json(), "source": None}
        if self.source is not None:
            done["source"] = {
                "name": self.source.name, "files": self.source.fingerprint, "split": self.source.split,
                "details": self.source.details(),
            }  # fmt: skip
        write_synced(self.parts / f"task_{rank:05d}_of_{world_size:05d}.json", to_json(done))

    def own_files(self, rank: int, world_size: int) -> Iterator[tuple[str, Iterator[Piece]]]:
        assert self.source is not None
        mine = self.source.part(rank, world_size)
        scratch = self.parts / f"scratch_{rank:05d}"
        mine.begin(scratch)
        for number in range(len(mine)):
            yield f"{rank + number * world_size:06d}", mine.pieces(number)
            mine.release(range(number + 1))
        shutil.rmtree(scratch, ignore_errors=True)

    def write(self, key: str, found: Iterable[Piece], encode: fast.Encode) -> dict[str, Any]:
        """One part: NAME.bin has the ids, NAME.npy a row a piece, (ids, bits)."""
        name = sha256(key)[:16]
        index, count, text_bytes, validation = [], 0, 0, False
        with replaced(self.parts / f"{name}.bin") as file:
            for piece in found:
                count += piece.first
                text_bytes += len(piece.text.encode("utf-8"))
                validation = chosen_for_validation(piece.text) if piece.first else validation
                ids = encode(piece.text)
                index.append((len(ids), FIRST * piece.first | VALIDATION * validation))
                file.write(ids.tobytes())
                self.stat_update("tokens", value=len(ids))
        with replaced(self.parts / f"{name}.npy") as file:
            np.save(file, np.array(index, dtype=np.int64).reshape(-1, 2))
        for suffix in ("bin", "npy"):
            sync(self.parts / f"{name}.{suffix}")
        return {"key": key, "name": name, "documents": count, "bytes": text_bytes}


def replaced(path: Path) -> IO[bytes]:
    """A new file in the place of what an earlier try has left."""
    path.unlink(missing_ok=True)
    return open_new(path)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def files_of(data: Iterable[Document]) -> Iterator[tuple[str, Iterator[Piece]]]:
    """The pieces of each file that datatrove's readers have read."""
    seen = set()
    for path, found in groupby(data, key=lambda document: str(document.metadata.get("file_path", ""))):
        if path in seen:
            raise UserError(
                f"the documents of {path or 'no file'} come in several runs: do not shuffle them."
            )
        seen.add(path)
        yield path, (piece for document in found for piece in pieces(document.text))


class Finish(PipelineStep):
    """All the parts -> the data folder `out`. Runs in one task, after all of Tokenise's."""

    type, name = "overnight", "finish"

    def __init__(self, parts: str, out: str, name: str = "", shard_tokens: int = SHARD_TOKENS):
        super().__init__()
        self.parts, self.out, self.source_name, self.shard_tokens = Path(parts), Path(out), name, shard_tokens

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        if rank > 0:
            return
        tasks = self.tasks()
        described, source = tasks[0]["tokenizer"], tasks[0]["source"]
        if any(task["tokenizer"] != described or task["source"] != source for task in tasks):
            raise UserError(f"the tasks of {self.parts} differ in tokenizer or source: tokenise anew.")
        if (source is None) == (self.source_name == ""):
            raise UserError("Finish needs a name for documents of other readers, and only for these.")
        parts = sorted((part for task in tasks for part in task["parts"]), key=lambda part: part["key"])
        if source is None:
            files = sha256("\n".join(f"{part['key']} {part['bytes']}" for part in parts))
            source = {"name": self.source_name, "files": files, "split": None, "details": {}}
        tokenizer = tokens.from_json(described, self.parts)
        request = {
            "source": source["name"],
            "tokenizer": "gpt2" if tokenizer.kind == "gpt2" else tokenizer.sha256,
            "shard_tokens": self.shard_tokens,
            "files": source["files"],
        }
        if already_there(self.out, request) is not None:
            return
        count = sum(part["documents"] for part in parts)
        rule = source["split"] or (BY_TAIL if count < FEW_DOCUMENTS else BY_HASH)
        with staging(self.out, request) as folder:
            splits = Splits(folder, rule, self.shard_tokens, tokenizer)
            for part in parts:
                for bits, ids in self.pieces(part["name"], tokenizer):
                    splits.add(bool(bits & FIRST), bool(bits & VALIDATION), ids)
            write_tokenizer(folder, tokenizer)
            complete(folder, request, splits, count, sum(part["bytes"] for part in parts), source["details"])

    def pieces(self, name: str, tokenizer: tokens.Tokenizer) -> Iterator[tuple[int, np.ndarray]]:
        """(bits, ids) of each piece of a part."""
        path = self.parts / f"{name}.bin"
        try:
            with open_regular(path) as file, open_regular(path.with_suffix(".npy")) as bounds:
                ids = np.fromfile(file, dtype=tokenizer.dtype)
                index = read_array(bounds, allow_pickle=False)
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename or path}: {reason(error)}. Tokenise anew."
            ) from None
        except Exception:  # bytes that are no array fail in many ways
            raise UserError(f"{path.with_suffix('.npy')} is damaged. Tokenise anew.") from None
        sound = index.dtype == np.int64 and index.ndim == 2 and index.shape[1] == 2
        lengths = index[:, 0].tolist() if sound else []
        if not sound or min(lengths, default=0) < 0 or sum(lengths) * ids.itemsize != path.stat().st_size:
            raise UserError(f"{path} and its .npy do not fit each other. Tokenise anew.")
        if len(ids) and ids.max() >= tokenizer.vocab_size:
            raise UserError(f"{path} has the id {ids.max()}, which its tokenizer has not. Tokenise anew.")
        ends = np.cumsum(lengths).tolist()
        for length, end, bits in zip(lengths, ends, index[:, 1].tolist(), strict=True):
            yield bits, ids[end - length : end]

    def tasks(self) -> list[dict[str, Any]]:
        """What each task wrote; all must have ended."""
        found = sorted(path for path in self.parts.glob("task_*_of_*.json") if TASK.fullmatch(path.name))
        sizes = {int(path.stem.rpartition("_")[2]) for path in found}
        if len(sizes) != 1 or len(found) != min(sizes):
            raise UserError(
                f"{self.parts} does not hold all the parts of one Tokenise: {len(found)} tasks of "
                f"{' or '.join(map(str, sorted(sizes))) or 'none'} have ended. Run it to its end."
            )
        return [check_task(read_json(path, "task"), path) for path in found]


def check_task(task: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `Tokenise` says it wrote. Raises UserError where it is not that."""
    kinds = {"name": str, "files": str, "details": dict}
    try:
        source = task["source"]
        sound = source is None or all(isinstance(source[key], kind) for key, kind in kinds.items())
        sound = sound and (source is None or source["split"] in (None, *RULES))
        for part in task["parts"]:
            sound = sound and isinstance(part["key"], str) and bool(PART.fullmatch(part["name"]))
            count_of(part["documents"], "documents")
            count_of(part["bytes"], "bytes")
        if not sound or not isinstance(task["tokenizer"], dict):
            raise ValueError("its fields are not those that Tokenise writes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the task {path} is damaged: {error}. Tokenise anew.") from None
    return task
