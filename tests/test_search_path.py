"""A module that somebody left in the current folder is not imported, whatever process is started there."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.launching import SMALL

TEMPTING = ("torch", "numpy", "json", "socket", "multiprocessing", "safetensors", "tokenizers")
CODE = "import pathlib, sys\npathlib.Path('imported').touch()\nsys.exit('a stranger runs here')\n"
BIN = Path(sys.executable).parent  # where pip puts commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which every name is planted that a process may look for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in TEMPTING:
        Path(f"{name}.py").write_text(CODE)
    return tmp_path


def run(*command: object) -> None:
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert not Path("imported").exists()
    assert not ended.returncode, ended.stderr


def test_the_modules_are_tempting(here: Path) -> None:
    """Or nothing here would prove anything."""
    assert subprocess.run([sys.executable, "-m", "json"], capture_output=True).returncode
    assert Path("imported").exists()


@pytest.mark.parametrize("module", ["overnight", "overnight.agent", "overnight.stopwatch"])
def test_a_module_that_python_runs_by_name(here: Path, module: str) -> None:
    arguments = ["plan", "gpt2-124m"] if module == "overnight" else ["--help"]
    if module == "overnight.stopwatch":
        ended = subprocess.run([sys.executable, "-m", module], input="{}", capture_output=True, text=True)
        assert "KeyError" in ended.stderr  # it got as far as reading its job
        assert not Path("imported").exists()
    else:
        run(sys.executable, "-m", module, *arguments)


def test_the_ranks_and_their_launcher(here: Path, data_folder: Path) -> None:
    Path("overnight.py").write_text(CODE)
    options = ["--data", data_folder, "--run", here / "run", *SMALL, "--steps", "2"]
    run(BIN / "overnight", "train", "shakespeare-cpu", *options, "--processes", "2")


def test_ranks_of_torchrun(here: Path, data_folder: Path) -> None:
    options = ["--data", data_folder, "--run", here / "run", *SMALL, "--steps", "2"]
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", "-m", "overnight"]
    run(*torchrun, "--", "train", "shakespeare-cpu", *options)


def test_the_workers_of_prepare(here: Path) -> None:
    Path("overnight.py").write_text(CODE)
    for n in range(400):  # too much to be done in one process
        Path(f"{n}.txt").write_text(f"Document {n}. " * 2000)
    run(BIN / "overnight", "prepare", "text:.", "--tokenizer", "bpe:300", "--workers", "2", "--out", "d")
