"""shards:PATH: other people's tokens, the same ones, or a clear word on what is wrong with them."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overnight.data import readymade, tokens
from overnight.data.manifest import Data
from overnight.data.shards import header
from overnight.errors import UserError

Cli = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
DRAW = np.random.default_rng(1)
TRAIN = DRAW.integers(0, 50_257, 3000).astype("<u2")
VAL = DRAW.integers(0, 50_257, 500).astype("<u2")


def llm_c(folder: Path) -> None:
    parts = {"x_train_000001.bin": TRAIN[:2000], "x_train_000002.bin": TRAIN[2000:], "x_val_0.bin": VAL}
    for name, part in parts.items():
        (folder / name).write_bytes(header(len(part), part.dtype) + part.tobytes())


def nanogpt(folder: Path) -> None:
    (folder / "train.bin").write_bytes(TRAIN.tobytes())
    (folder / "val.bin").write_bytes(VAL.tobytes())
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 50_257}))


def build_nanogpt(folder: Path) -> None:
    np.save(folder / "edufineweb_train_000001.npy", TRAIN)
    np.save(folder / "edufineweb_val_000000.npy", VAL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


@pytest.mark.parametrize("make", [llm_c, nanogpt, build_nanogpt])
def test_each_format_gives_its_tokens(cli: Cli, folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    done = cli("prepare", "shards:made", "--shard-tokens", 1000)
    assert (done.code, done.err) == (0, "")
    data = Data(Path("data/made"))
    data.verify()
    for split, expected in (("train", TRAIN), ("val", VAL)):
        row = data.split(split)
        assert np.array_equal(row.read(0, len(row)), expected)
    lengths = tokens.gpt2().byte_lengths
    assert data.manifest.bytes == lengths[TRAIN].sum() + lengths[VAL].sum()
    assert "was ready already" in cli("prepare", "shards:made", "--shard-tokens", 1000).out


def test_a_tokenizer_may_be_named(cli: Cli, folder: Path) -> None:
    """nanoGPT's Shakespeare: 65 characters; ours has <|endoftext|> as the 66th."""
    Path("t.json").write_text(json.dumps(tokens.train_char("abcde").to_json()))
    for name in ("train", "val"):
        (folder / f"{name}.bin").write_bytes(np.array([0, 1, 2, 3, 4], "<u2").tobytes())
    assert cli("prepare", "shards:made", "--tokenizer", "t.json", "--out", "d").code == 0
    assert Data(Path("d")).tokenizer.decode(Data(Path("d")).split("val").read(0, 5)) == "abcde"
    refused = cli("prepare", "shards:made", "--tokenizer", "char", "--out", "e")
    assert refused.code == 2
    assert "give gpt2 or its tokenizer.json" in refused.err


def empty(folder: Path) -> None: ...


def no_val(folder: Path) -> None:
    llm_c(folder)
    (folder / "x_val_0.bin").unlink()


def truncated(folder: Path) -> None:
    llm_c(folder)
    path = folder / "x_train_000002.bin"
    path.write_bytes(path.read_bytes()[:-2])


def too_high(folder: Path) -> None:
    nanogpt(folder)
    ids = TRAIN.copy()
    ids[1234] = 50_257
    (folder / "train.bin").write_bytes(ids.tobytes())


def odd(folder: Path) -> None:
    nanogpt(folder)
    (folder / "val.bin").write_bytes(VAL.tobytes()[:-1])


def headerless(folder: Path) -> None:
    llm_c(folder)
    (folder / "x_val_0.bin").write_bytes(VAL.tobytes())


def floats(folder: Path) -> None:
    build_nanogpt(folder)
    np.save(folder / "edufineweb_val_000000.npy", VAL.astype(np.float32))


def pickled(folder: Path) -> None:
    build_nanogpt(folder)
    np.save(folder / "edufineweb_val_000000.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def unnamed(folder: Path) -> None:
    llm_c(folder)
    (folder / "test.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "has no .bin or .npy file with 'train'"),
        (no_val, "has no .bin or .npy file with 'val'"),
        (truncated, "x_train_000002.bin is damaged"),
        (too_high, "token 1,234 is 50257, but the gpt2 tokenizer has 50,257 ids"),
        (odd, "val.bin is no file of tokens"),
        (headerless, "x_val_0.bin is no file of tokens"),
        (floats, "holds float32 of shape [500]"),
        (pickled, "holds object of shape [1]"),
        (unnamed, "test.bin is not named for one split"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_made(
    cli: Cli, folder: Path, tree: Tree, make: Callable[[Path], None], message: str
) -> None:
    make(folder)
    before = tree(folder.parent)
    refused = cli("prepare", "shards:made")
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert len(refused.err.splitlines()) <= 3
    assert tree(folder.parent) == before


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(3,)", "(-5,)", "(1.5,)", "(" + "9" * 5000 + ",)"])
def test_an_array_whose_header_lies_is_refused(cli: Cli, folder: Path, shape: str) -> None:
    build_nanogpt(folder)
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (folder / "edufineweb_val_000000.npy").write_bytes(start + header + VAL.tobytes())
    refused = cli("prepare", "shards:made")
    assert (refused.code, refused.out) == (2, "")
    assert "is no array of tokens" in refused.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.parametrize("name", ["train.bin", "train.npy"])
def test_a_fifo_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="it is a FIFO"):
        readymade.open_tokens(tmp_path / name)
