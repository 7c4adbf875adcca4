"""No pickle is loaded, wherever a file is read: malicious ones are planted everywhere."""

import gzip
import io
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from tests import fuzz_data, fuzz_models, fuzz_text, fuzz_weights
from tests.conftest import TINY, Outcome

from overnight.data import stackexchange
from overnight.data.cluster import Finish
from overnight.errors import UserError


class Malicious:
    """Makes a folder when its pickle is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def in_a_zip(value: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def in_an_array(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([value], dtype=object), allow_pickle=True)
    return file.getvalue()


def in_an_npz(value: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([value], dtype=object))
    return file.getvalue()


FORMS: dict[str, Callable[[object], bytes]] = {
    "plain": lambda value: pickle.dumps(value, 4),
    "text": lambda value: pickle.dumps(value, 0) + b"\n",  # ASCII, which is text to whom text is welcome
    "torch": in_a_zip,
    "legacy torch": lambda value: in_a_zip(value, zipped=False),
    "npy": in_an_array,
    "npz": in_an_npz,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A malicious pickle: the name of its form, and its bytes; afterwards it must not have been loaded."""
    mark = tmp_path / "loaded"
    content = FORMS[request.param](Malicious(mark))
    yield request.param, content
    assert not mark.exists()


def test_the_pickles_are_malicious(tmp_path: Path) -> None:
    """Or nothing here would prove anything."""
    loaders: dict[str, Callable[[bytes], object]] = {
        "plain": pickle.loads,
        "text": pickle.loads,
        "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "legacy torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "npy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "npz": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["a"],
    }
    for name, load in loaders.items():
        mark = tmp_path / name
        load(FORMS[name](Malicious(mark)))
        assert mark.exists()


def refused(outcome: Outcome) -> None:
    assert outcome.code in (1, 2), (outcome.out, outcome.err)
    lines = outcome.err.strip().splitlines()
    assert 1 <= len(lines) <= 3, outcome.err
    assert "Traceback" not in outcome.err


def model(path: Path) -> list[object]:
    return ["sample", path, "--length", "4", "--device", "cpu"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "config.json", "tokenizer.json"])
def test_in_a_run(name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    run = fuzz_models.make_run(tmp_path)
    target = run / name if (run / name).exists() else run / "checkpoints" / "step_00000001" / name
    assert cli(*model(run)).code == 0
    target.write_bytes(form[1])
    export = ["export", run, "--to", "hf", "--out", tmp_path / "exported"]
    for command in (model(run), ["inspect", run], ["eval", run], export):
        done = cli(*command)
        if name == "config.json" and done.code == 0:  # the checkpoint has a copy
            assert "The copy in step_00000001 is used." in done.err
        else:
            refused(done)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "records.jsonl"])
def test_in_a_run_that_goes_on(
    name: str, form: tuple[str, bytes], run: Path, train: Callable[..., Outcome]
) -> None:
    """Damaged checkpoints are moved aside and records cut back, so training begins anew."""
    for target in [*run.glob(f"checkpoints/*/{name}"), *run.glob(name)]:
        target.write_bytes(form[1])
    outcome = train(run, "--steps", 5)
    if outcome.code:
        refused(outcome)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "model-1.safetensors", "overnight_tokenizer.json"]
)
def test_in_a_folder_of_transformers(
    name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    folder = fuzz_weights.make_hf(tmp_path)
    assert cli(*model(Path(f"hf:{folder}"))).code == 0
    (folder / name).write_bytes(form[1])
    refused(cli(*model(Path(f"hf:{folder}"))))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_as_the_only_weights_of_a_folder(
    name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    folder = fuzz_weights.make_hf(tmp_path)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / name).write_bytes(form[1])
    refused(cli(*model(Path(f"hf:{folder}"))))


@pytest.mark.parametrize("kind", ["llmc", "nanogpt"])
def test_in_a_file_of_weights(
    kind: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    (tmp_path / "model").write_bytes(form[1])
    refused(cli(*model(Path(f"{kind}:{tmp_path / 'model'}"))))


def test_inside_a_checkpoint_of_nanogpt(tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    for place in ("model", "model_args", "config"):
        for zipped in (True, False):
            saved = fuzz_weights.nanogpt_checkpoint() | {place: Malicious(tmp_path / "loaded")}
            (tmp_path / "ckpt.pt").write_bytes(in_a_zip(saved, zipped))
            refused(cli(*model(Path(f"nanogpt:{tmp_path / 'ckpt.pt'}"))))
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train_000001.bin", "val_000000.bin"])
def test_in_prepared_data(
    name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    folder = fuzz_data.make_data(tmp_path).parent
    (folder / name).write_bytes(form[1])
    refused(cli("train", "shakespeare-cpu", "--data", folder, "--run", tmp_path / "x", *TINY))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["train.npy", "train.bin", "llmc_train_000001.bin"])
def test_in_ready_made_tokens(
    name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    (tmp_path / "tokens").mkdir()
    np.arange(100, dtype="<u2").tofile(tmp_path / "tokens" / "val.bin")
    (tmp_path / "tokens" / name).write_bytes(form[1])
    outcome = cli("prepare", f"shards:{tmp_path / 'tokens'}", "--out", tmp_path / "data")
    if name == "train.bin" and outcome.code == 0:  # nanoGPT's files have no header: any ids are tokens
        return
    refused(outcome)
    assert not (tmp_path / "data").exists()


def test_nanogpts_meta_is_not_read(
    form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for split in ("train", "val"):
        np.arange(100, dtype="<u2").tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(form[1])
    assert cli("prepare", f"shards:{folder}", "--out", tmp_path / "data").code == 0


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet", "packed.txt.gz", "packed.txt.zst"]
)
def test_in_text(name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    content = pack[Path(name).suffix](form[1]) if name.startswith("packed") else form[1]
    (tmp_path / name).write_bytes(content)
    outcome = cli("prepare", f"text:{tmp_path / name}", "--out", tmp_path / "data", "--workers", "1")
    if form[0] == "text" and name.startswith("packed"):
        return
    refused(outcome)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", ["hellaswag", "lambada", "perplexity"])
def test_in_what_eval_reads(
    option: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    run = fuzz_models.make_run(tmp_path)
    (tmp_path / "a").write_bytes(form[1])
    file = {"perplexity": "--text-file"}.get(option, f"--{option}-file")
    refused(cli("eval", run, "--device", "cpu", "--tasks", option, file, tmp_path / "a"))


def test_as_a_tokenizer(form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    (tmp_path / "tokenizer.json").write_bytes(form[1])
    (tmp_path / "a.txt").write_text("a text")
    chosen = ["--tokenizer", tmp_path / "tokenizer.json"]
    refused(cli("prepare", f"text:{tmp_path / 'a.txt'}", "--out", tmp_path / "data", *chosen))


def test_in_a_dump(form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    (tmp_path / "Posts.xml").write_bytes(form[1])
    refused(cli("prepare", f"stackexchange:{tmp_path}", "--out", tmp_path / "data"))


@pytest.mark.parametrize("name", ["progress.json", "tokenizer.json", "train_000001.bin"])
def test_in_data_that_was_begun(
    name: str, form: tuple[str, bytes], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    begun = fuzz_data.make_progress(tmp_path).parent
    source = f"text:{tmp_path / 'text.jsonl'}"
    shutil.move(begun, tmp_path / ".data.partial")
    (tmp_path / ".data.partial" / name).write_bytes(form[1])
    refused(cli("prepare", source, "--out", tmp_path / "data", "--tokenizer", "char"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("suffix", [".json", ".npy", ".bin"])
def test_in_parts_of_many_machines(suffix: str, form: tuple[str, bytes], tmp_path: Path) -> None:
    parts = fuzz_data.make_parts(tmp_path).parent
    next(parts.glob(f"*{suffix}")).write_bytes(form[1])
    with pytest.raises(UserError):
        Finish(str(parts), str(tmp_path / "data")).run()


def test_in_a_database_of_posts(form: tuple[str, bytes], tmp_path: Path) -> None:
    path = fuzz_text.make_database(tmp_path)
    path.write_bytes(form[1])
    fuzz_text.read_database(path)  # collected anew
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute(stackexchange.TABLE)
    connection.execute(stackexchange.INDEX)
    connection.execute("INSERT INTO posts VALUES (1, 1, 0, 1, 'x', ?, 'x', 'x')", (form[1],))
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="damaged"):
        fuzz_text.read_database(path)
