"""`overnight prepare shards:PATH`: a folder of ready-made tokens -> a data folder.

llm.c             .bin with a header (shards.py)
nanoGPT           train.bin and val.bin, uint16 without a header; its meta.pkl is a pickle and is not read
build-nanogpt     .npy of uint16

The split is what the files' names say. Every id is compared with the tokenizer's vocabulary.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from overnight.data import tokens
from overnight.data.documents import Source
from overnight.data.manifest import MANIFEST, TOKENIZER, Data
from overnight.data.shards import KINDS, Shard, ShardWriter, open_shard
from overnight.data.splits import manifest, totals
from overnight.data.staging import already_there, staging
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.files import (
    clear_disk_errors,
    open_regular,
    parent_problem,
    reason,
    sealed,
    to_json,
    write_synced,
)
from overnight.terminal import Status

BLOCK = 1 << 22  # tokens read at a time
BY_NAME = "as the ready-made files are named"
MAGICS = {np.array(kind, "<i4").tobytes() for kind in KINDS}


def prepare(source: str, out: Path, tokenizer: str, shard_tokens: int) -> Data:
    """Make the data folder `out` from ready-made tokens; whole, or not there. Raises UserError for files that
    are damaged, hold ids that the tokenizer does not have, or do not say which split they are."""
    if problem := parent_problem(out):
        raise UserError(problem)
    folder = Path(source.removeprefix("shards:"))
    chosen = named_tokenizer(tokenizer)
    splits = find(folder)
    files = Source(source, tuple(path for paths in splits.values() for path in paths))
    request: dict[str, Any] = {
        "source": source, "tokenizer": chosen.sha256, "shard_tokens": shard_tokens, "files": files.fingerprint
    }  # fmt: skip
    if (done := already_there(out, request)) is not None:
        return done
    with clear_disk_errors(f"preparing {out}"), staging(out, request) as aside:
        build(splits, aside, request, chosen, shard_tokens)
    return Data(out)


def named_tokenizer(name: str) -> Tokenizer:
    """GPT-2's, or that of a file; others cannot be learnt from tokens."""
    if name in ("", "gpt2"):
        return tokens.gpt2()
    if not Path(name).is_file():
        raise UserError(
            f"--tokenizer {name}: ready-made tokens need the tokenizer that they were made with: "
            "give gpt2 or its tokenizer.json."
        )
    return tokens.load(Path(name))


def find(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, sorted by name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: shards:PATH is the folder of .bin or .npy files.")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".npy") and path.is_file())
    for path in files:
        if ("train" in path.name) == ("val" in path.name):
            raise UserError(f"{path} is not named for one split: call it train or val, or move it away.")
    splits = {split: [path for path in files if split in path.name] for split in ("train", "val")}
    for split, paths in splits.items():
        if not paths:
            raise UserError(f"{folder} has no .bin or .npy file with '{split}' in its name.")
    return splits


def open_tokens(path: Path) -> Shard:
    """The tokens of a file, read as they are asked for, (n,) of uint16 or uint32."""
    if path.suffix == ".npy":
        return open_array(path)
    try:
        with open_regular(path) as file:
            start, size = file.read(8), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}.") from None
    if start in MAGICS:
        return open_shard(path)
    if path.name not in ("train.bin", "val.bin") or size % 2 or not size:
        raise UserError(
            f"{path} is no file of tokens: it has no header of llm.c, and nanoGPT's are called "
            "train.bin and val.bin and hold two bytes a token."
        )
    return Shard(path, np.dtype("<u2"), size // 2, start=0)


def open_array(path: Path) -> Shard:
    """The tokens of an .npy file whose size is what its header says."""
    try:
        with open_regular(path) as file:
            version = read_magic(file)
            read = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
            shape, _, dtype = read(file)  # at most 10,000 characters; never a pickle
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except Exception as error:  # bytes that are no array fail in many ways
        raise UserError(f"{path} is no array of tokens: {reason(error)[:200]}.") from None
    if len(shape) != 1 or dtype not in (np.uint16, np.uint32):
        raise UserError(f"{path} holds {dtype} of shape {list(shape)}, not a row of uint16.")
    if size != start + shape[0] * dtype.itemsize:
        raise UserError(f"{path} is no array of tokens: its header says {shape[0]:,}, it has {size:,} bytes.")
    return Shard(path, dtype, shape[0], start)


def checked(path: Path, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of a file in blocks, each id below the vocabulary's size."""
    found = open_tokens(path)
    for at in range(0, len(found), BLOCK):
        block = np.asarray(found[at : at + BLOCK])
        if (wrong := block >= tokenizer.vocab_size).any():
            place = int(np.argmax(wrong))
            raise UserError(
                f"{path}: token {at + place:,} is {block[place]}, but the {tokenizer.kind} tokenizer has "
                f"{tokenizer.vocab_size:,} ids: name the right one with --tokenizer FILE."
            )
        yield block


def build(
    splits: dict[str, list[Path]],
    folder: Path,
    request: dict[str, Any],
    tokenizer: Tokenizer,
    shard_tokens: int,
) -> None:
    """Fill `folder` with shards, tokenizer.json and manifest.json."""
    status, shards = Status(), []
    documents = text_bytes = 0
    for split, first in (("train", 1), ("val", 0)):
        writer = ShardWriter(folder, split, first, shard_tokens, tokenizer.dtype)
        for path in splits[split]:
            for block in checked(path, tokenizer):
                writer.append(block)
                documents += int((block == tokenizer.eot).sum())
                text_bytes += int(tokenizer.byte_lengths[block].sum())
                status.update(lambda path=path, count=documents: f"{path}: {count:,} documents so far")  # type: ignore[misc]
        shards += writer.close()
    status.clear()
    found = totals(shards)
    if min(found.values()) < 2:
        raise UserError(f"too few tokens: {found['train']} of training, {found['val']} of validation.")
    write_synced(folder / TOKENIZER, to_json(tokenizer.to_json()))
    described = manifest(shards, tokenizer, request, BY_NAME, max(1, documents), text_bytes)
    write_synced(folder / MANIFEST, sealed(described.to_json()))
