"""Readers of prepared data, tokenizers, ready-made tokens, and data in the making."""

import io
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tests.editing import unsealed
from tests.fuzzing import Reader
from tests.mutations import binary, json_file

from overnight.data import documents, prepare, readymade, staging, tokens
from overnight.data.cluster import Finish, Tokenise
from overnight.data.manifest import BY_FIRST_SHARD, MANIFEST, TOKENIZER, Data
from overnight.data.shards import HEADER_BYTES, ShardWriter, Tokens, open_shard
from overnight.data.splits import BY_HASH, Splits
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.files import to_json, write_synced
from overnight.terminal import Status

TEXT = "to be, or not to be: that is the question. été 漢字 🙂\n"
TINY = 40  # tokens of a shard
REQUEST = {"source": "text.jsonl", "tokenizer": "char", "shard_tokens": TINY, "files": "0"}


@cache
def char_tokenizer() -> Tokenizer:
    return tokens.train_char([TEXT, "0123456789"])


def bpe_tokenizer() -> Tokenizer:
    return tokens.train_bpe(iter([TEXT * 3]), 270)


def make_shard(folder: Path) -> Path:
    writer = ShardWriter(folder, "train", 1, 1000, np.dtype("<u2"))
    writer.append(np.arange(100))
    writer.close()
    return folder / "train_000001.bin"


def read_shard(path: Path) -> None:
    shard = open_shard(path)
    assert path.stat().st_size == HEADER_BYTES + len(shard) * shard.dtype.itemsize
    row = Tokens([shard, shard])
    assert len(row.read(0, len(row))) == 2 * len(shard)


def make_data(folder: Path) -> Path:
    Finish(str(make_parts(folder).parent), str(folder / "data"), shard_tokens=TINY).run()
    return unsealed(folder / "data" / MANIFEST)


def read_data(path: Path) -> None:
    """What `train` and a second `prepare` do with a data folder."""
    folder = path.parent
    assert isinstance(staging.request_of(folder), dict)
    data = Data(folder)
    found = data.manifest
    assert {split: len(data.split(split)) for split in ("train", "val")} == found.tokens
    assert all(type(count) is int for count in (found.documents, found.bytes, *found.tokens.values()))
    assert len({shard["file"] for shard in found.shards}) == len(found.shards)
    assert found.dtype == data.tokenizer.dtype.name
    assert all((folder / shard["file"]).parent == folder for shard in found.shards)
    assert len(data.fingerprint) == 64
    for split in ("train", "val"):
        row = data.split(split)
        data.tokenizer.decode(row.read(0, len(row)))
    assert staging.already_there(folder, found.request) is not None
    data.verify()


def read_tokens_of_data(path: Path) -> None:
    """A shard whose bytes have changed, as an evaluation that does not verify reads it."""
    data = Data(path.parent)
    row = data.split("train")
    assert data.tokenizer.byte_lengths[row.read(0, len(row))].min() >= 0


def make_shard_of_data(folder: Path) -> Path:
    return make_data(folder).parent / "train_000001.bin"


def make_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    write_synced(folder / TOKENIZER, to_json(tokenizer.to_json()))
    return folder / TOKENIZER


def read_tokenizer(path: Path) -> None:
    tokenizer = tokens.load(path)
    size = tokenizer.vocab_size
    assert len(tokenizer.byte_lengths) == size == tokenizer.eot + 1
    assert np.iinfo(tokenizer.dtype).max >= tokenizer.eot
    tokenizer.decode([*range(min(size, 500)), tokenizer.eot])
    assert len(tokenizer.sha256) == 64
    try:
        ids = tokenizer.encode(TEXT)
    except UserError:
        assert tokenizer.kind == "char"
        return
    assert tokenizer.decode(ids) == TEXT
    assert ids.max() < tokenizer.eot


def make_npy(folder: Path) -> Path:
    np.save(folder / "train.npy", np.arange(100, dtype=np.uint16) % 9)
    return folder / "train.npy"


def make_bin(folder: Path) -> Path:
    (np.arange(100, dtype="<u2") % 9).tofile(folder / "train.bin")
    return folder / "train.bin"


def read_readymade(path: Path) -> None:
    ids = list(readymade.checked(path, char_tokenizer()))
    assert sum(map(len, ids)) <= path.stat().st_size
    assert all(block.max() < char_tokenizer().vocab_size for block in ids)


def npy(valid: bytes) -> SearchStrategy[bytes]:
    """numpy's header is a Python literal behind its length."""
    literals = (
        "'|O'", "'O'", "'<u2'", "'>u2'", "'<u4'", "'V8'", "[('a','O')]", "[('a','<u2')]", "'M8[ns]'", "None",
        "(100,)", "(-1,)", "(10**9,)", "(" + "9" * 30 + ",)", "()", "(1,2)", "(0,)", "(2**63,)", "(True,)",
        "(50,)", "[100]", "100", "(1e3,)", "True", "False", "(" * 500 + ")" * 500, "-" * 900 + "1", "'",
    )  # fmt: skip
    draw = st.sampled_from(literals)

    def build(parts: tuple[str, str, str, bytes]) -> bytes:
        described, order, shape, magic = parts
        header = f"{{'descr': {described}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
        width = 2 if magic == b"\1\0" else 4
        return b"\x93NUMPY" + magic + len(header).to_bytes(width, "little") + header + valid[-200:]

    usual = (st.just("'<u2'") | draw, st.just("False") | draw, st.just("(100,)") | draw)
    versions = st.sampled_from([b"\1\0", b"\2\0", b"\3\0"])
    archive = io.BytesIO()
    np.savez(archive, np.arange(3))
    return st.one_of(binary(valid, 128), st.tuples(*usual, versions).map(build), binary(archive.getvalue()))


def make_progress(folder: Path) -> Path:
    """Data that was begun, with a shard finished and one open."""
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"{TEXT}{i}"}) + "\n" for i in range(12)))
    begun = folder / "begun"
    begun.mkdir()
    tokenizer = char_tokenizer()
    prepare.write_tokenizer(begun, tokenizer)
    splits = Splits(begun, BY_HASH, TINY, tokenizer)
    for number in range(4):
        splits.add(True, number % 2 == 1, tokenizer.encode(TEXT))
    prepare.commit(begun, REQUEST, splits, prepare.Place(0, 4, 4, 4 * len(TEXT.encode()), True))
    return unsealed(begun / prepare.PROGRESS)


def read_progress(path: Path) -> None:
    """What `prepare` does in a folder that was begun, up to the whole folder."""
    begun = path.parent
    assert isinstance(staging.request_of(begun), dict)
    work = begun.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(begun, work)
    splits, place = prepare.resume(work, TINY)
    source = documents.find(f"text:{begun.parent / 'text.jsonl'}", begun)
    tokenizer = splits.tokenizer
    for reached, batch in prepare.batches(source, place, splits.rule, Status()):
        place = reached
        for first, validation, text in batch:
            splits.add(first, validation, tokenizer.encode(text))
    prepare.complete(work, REQUEST, splits, place.documents, place.bytes, {})
    staging.publish(work, begun.with_name("done"))
    Data(begun.with_name("done"))
    shutil.rmtree(begun.with_name("done"))
    assert splits.rule in (BY_HASH, BY_FIRST_SHARD)


def read_staged_manifest(path: Path) -> None:
    """A folder that is whole and only wants its name: killed between the manifest and the renaming."""
    work, out = path.parent.with_name("work"), path.parent.with_name("named")
    for folder in (work, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path.parent, work)
    staging.publish(work, out)
    Data(out)


def make_parts(folder: Path) -> Path:
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"{TEXT}{i}"}) + "\n" for i in range(3)))
    prepare.write_tokenizer(folder, char_tokenizer())
    Tokenise(str(folder / "parts"), f"text:{source}", str(folder / TOKENIZER)).run()
    return folder / "parts" / "task_00000_of_00001.json"


def make_index(folder: Path) -> Path:
    return next(make_parts(folder).parent.glob("*.npy"))


def make_part(folder: Path) -> Path:
    return next(make_parts(folder).parent.glob("*.bin"))


def read_parts(path: Path) -> None:
    out = path.parent.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    Finish(str(path.parent), str(out), shard_tokens=TINY).run()
    data = Data(out)
    for split in ("train", "val"):
        row = data.split(split)
        data.tokenizer.decode(row.read(0, len(row)))


def index_of_parts(valid: bytes) -> SearchStrategy[bytes]:
    numbers = st.lists(st.lists(st.sampled_from([-1, 0, 1, 3, 53, 54, 2**40, 2**62]), min_size=2, max_size=2))

    def save(rows: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, np.array(rows, dtype=np.int64).reshape(-1, 2))
        return file.getvalue()

    return numbers.map(save) | npy(valid)


def tokenizer_file(valid: bytes) -> SearchStrategy[bytes]:
    """Merges that double the longest token, too."""

    def doubling(count: int) -> bytes:
        merges = [[0, 0], *([255 + i, 255 + i] for i in range(1, count))]
        described = {"kind": "bpe", "vocab_size": 257 + count, "eot": 256 + count, "merges": merges}
        return json.dumps(described).encode()

    return json_file(valid) | st.integers(1, 100).map(doubling)


READERS: dict[str, Reader] = {
    "shard": Reader(make_shard, read_shard, lambda valid: binary(valid, 12)),
    "tokens": Reader(make_shard_of_data, read_tokens_of_data, lambda valid: binary(valid, 12)),
    "manifest": Reader(make_data, read_data, json_file),
    "tokenizer-gpt2": Reader(lambda folder: make_tokenizer(tokens.gpt2(), folder), read_tokenizer, json_file),
    "tokenizer-bpe": Reader(lambda f: make_tokenizer(bpe_tokenizer(), f), read_tokenizer, tokenizer_file),
    "tokenizer-char": Reader(lambda f: make_tokenizer(char_tokenizer(), f), read_tokenizer, json_file),
    "npy": Reader(make_npy, read_readymade, npy),
    "bin": Reader(make_bin, read_readymade, lambda valid: binary(valid, 12)),
    "progress": Reader(make_progress, read_progress, json_file),
    "staged-manifest": Reader(make_data, read_staged_manifest, json_file),
    "cluster-task": Reader(make_parts, read_parts, json_file),
    "cluster-index": Reader(make_index, read_parts, index_of_parts),
    "cluster-ids": Reader(make_part, read_parts, binary),
}
