"""What the tests share: a prepared corpus, a trained run, and the command line, called in this process."""

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for models this small, more threads only wait for one another

from overnight import cli as command
from overnight import records, saved
from overnight.data.prepare import prepare

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")

TINY = (
    "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 "
    "--batch-tokens 64 --steps 4 --optim.warmup-steps 1 --sample.length 8"
).split()
# Turns a preset of GPT-2's into one of the modern recipe.
MODERN = (
    "--model.architecture modern --model.activation relu2 --model.no-bias --optim.algorithm muon "
    "--optim.lr 0.02 --optim.min-lr 0 --optim.schedule trapezoid --optim.momentum-steps 5"
).split()
FOLDERS = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")}
WORDS = "the night is long and the model learns one word after another until morning".split()


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def babble(seed: int) -> str:
    """About 20 kB of text; every seed has the same characters."""
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(500)) + " ".join(WORDS)


def make_data(folder: Path, text: str) -> Path:
    """Prepare `text` as one document with the char tokenizer."""
    source = folder / "text.txt"
    source.write_text(text)
    prepare(f"text:{source}", folder / "data", "char", workers=1, shard_tokens=100_000_000)
    return folder / "data"


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, prepared with the char tokenizer."""
    return make_data(tmp_path_factory.mktemp("corpus"), babble(1))


@pytest.fixture(scope="session")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus with the same tokenizer."""
    return make_data(tmp_path_factory.mktemp("other"), babble(2))


@pytest.fixture(scope="session")
def foreign_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with another tokenizer."""
    return make_data(tmp_path_factory.mktemp("foreign"), babble(1).upper())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A complete run of 4 steps with all 4 checkpoints; not to be changed, `run` is a copy."""
    run = tmp_path_factory.mktemp("trained") / "x"
    arguments = ["train", "shakespeare-cpu", "--data", str(data_folder), "--run", str(run), *TINY]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert command.run([*arguments, "--save-every", "1", "--eval-every", "1", "--keep", "9"]) == 0
    return run


@pytest.fixture(autouse=True)
def no_full_collection() -> Iterator[None]:
    """Skip the garbage collection before training, which takes 0.1 to 0.3 s with torch imported.

    If `overnight.train` is not imported yet, it stays as it is: importing it takes seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "overnight.train" in sys.modules:
            patch.setattr("overnight.train.frozen_garbage", contextlib.nullcontext)
        yield


@pytest.fixture(autouse=True)
def same_folders() -> Iterator[None]:
    """The folders that a command sets for its process (private.py) end with the test, or with the fixture
    of the whole session that called it."""
    restore_folders()
    yield
    restore_folders()


def restore_folders() -> None:
    tempfile.tempdir = None
    for name, value in FOLDERS.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained` at runs/x of the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs" / "x"))


@pytest.fixture
def stopped(run: Path) -> Path:
    """The run as a kill after its third step left it: the newest checkpoint is of step 2."""
    for step in (3, 4):
        shutil.rmtree(saved.folder(run, step))
    lines = (run / records.FILE).read_bytes().splitlines(keepends=True)
    third = next(i for i, line in enumerate(lines) if b'"kind": "val", "step": 3' in line)
    (run / records.FILE).write_bytes(b"".join(lines[:third]) + lines[third][:20])
    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`cli("eval", run)`: the command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = command.run([str(argument) for argument in arguments])
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def train(cli: Callable[..., Outcome], data_folder: Path) -> Callable[..., Outcome]:
    """`train(run, "--steps", 6)`: train as `trained` was trained; what comes later counts."""

    def call(run: Path, *options: object) -> Outcome:
        every = ["--save-every", 1, "--eval-every", 1, "--keep", 9]
        return cli("train", "shakespeare-cpu", "--data", data_folder, "--run", run, *TINY, *every, *options)

    return call


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """`tree(folder)`: every path below it, hidden ones too, with its content."""

    def look(folder: Path) -> dict[str, bytes]:
        paths = sorted(folder.rglob("*"))
        return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}

    return look
