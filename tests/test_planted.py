"""A stranger's run folder: what it has at the names that are written or read harms nothing outside of it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import TINY, Outcome
from tests.forked import run_forked

from overnight import lock, records
from overnight.errors import Failure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, FIFOs do not exist")
Cli = Callable[..., Outcome]
NAMES = ["config.json", "environment.json", "tokenizer.json", "records.jsonl", "report.html", "inspect.html"]
NAMES += [".lock", "damaged_records_1.jsonl", "profile.json", "checkpoints", "tensorboard", "wandb"]
NAMES += [f".{name}.partial" for name in ("config.json", "report.html", "inspect.html", "records.jsonl")]
NAMES += ["checkpoints/.step_00000005", "checkpoints/step_00000005", "checkpoints/damaged_step_00000004_1"]


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """What belongs to the user, and to nobody else."""
    folder = tmp_path / "treasure"
    (folder / "step_00000004").mkdir(parents=True)
    (folder / "step_00000004" / "model.safetensors").write_text("mine")
    (folder / "file").write_text("mine")
    return folder


@pytest.fixture
def unharmed(treasure: Path, tree: Callable[[Path], dict[str, bytes]]) -> Callable[[], None]:
    before = tree(treasure)

    def check() -> None:
        assert tree(treasure) == before

    return check


def use(cli: Cli, train: Callable[..., Outcome], run: Path) -> None:
    """Everything that writes into a run. It works, or says in a line why it does not."""
    for done in (
        cli("report", run), cli("inspect", run), train(run), train(run, "--steps", 6, "--profile"),
        train(run, "--steps", 7, "--track", "tensorboard"), cli("report", run),
    ):  # fmt: skip
        assert done.code in (0, 1, 2)
        assert "Traceback" not in done.err
        if done.code:
            assert 1 <= len(done.err.splitlines()) <= 3


@pytest.mark.parametrize("target", ["file", "step_00000004", ".", "nothing"])
@pytest.mark.parametrize("name", NAMES)
def test_links_at_every_name(
    name: str, target: str, run: Path, treasure: Path, unharmed: Callable[[], None], cli: Cli, train
) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(treasure / target)
    use(cli, train, run)
    unharmed()


@pytest.mark.parametrize("name", [".lock", "records.jsonl", "config.json", "report.html"])
def test_hard_links_at_every_name(
    name: str, run: Path, treasure: Path, unharmed: Callable[[], None], cli: Cli, train
) -> None:
    (run / name).unlink(missing_ok=True)
    os.link(treasure / "file", run / name)
    use(cli, train, run)
    unharmed()


FIFOS = [*NAMES[:7], "checkpoints/step_00000004/state.json", "checkpoints/step_00000004/model.safetensors"]
FIFOS += ["checkpoints/step_00000004/optimizer.safetensors"]


def use_alone(verb: str, run: Path, data_folder: Path, tmp_path: Path) -> str:
    """What a verb prints in a process of its own, which could hang."""
    commands = {
        "report": ["report", run], "inspect": ["inspect", run],
        "eval": ["eval", run, "--data", data_folder, "--device", "cpu"],
        "train": ["train", "shakespeare-cpu", "--run", run, "--data", data_folder, *TINY, "--steps", 6],
    }  # fmt: skip
    assert run_forked([str(part) for part in commands[verb]], tmp_path / "output") in (0, 1, 2)
    printed = (tmp_path / "output").read_text()
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize("name", FIFOS)
@pytest.mark.parametrize("verb", ["report", "inspect", "eval", "train"])
def test_fifos_block_nothing(verb: str, name: str, run: Path, data_folder: Path, tmp_path: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    use_alone(verb, run, data_folder, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("name", ["records.jsonl", "checkpoints/step_00000004/model.safetensors"])
@pytest.mark.parametrize("verb", ["report", "eval", "train"])
def test_endless_files_end(verb: str, name: str, run: Path, data_folder: Path, tmp_path: Path) -> None:
    """A regular file of size 0 that has 256 GB to read."""
    (run / name).unlink()
    (run / name).symlink_to("/proc/self/pagemap")
    printed = use_alone(verb, run, data_folder, tmp_path)
    read = {"report": "records.jsonl", "eval": "checkpoints/step_00000004/model.safetensors", "train": name}
    assert ("it is a file of the system" in printed) == (read[verb] == name)
    assert not list(run.glob("damaged_records*"))


def test_a_lock_that_is_not_a_file_is_refused_and_a_second_name_keeps_its_content(
    run: Path, treasure: Path, unharmed: Callable[[], None]
) -> None:
    (run / lock.FILE).symlink_to(treasure / "file")
    with pytest.raises(Failure, match="symbolic link"), lock.Lock(run):
        pass
    assert lock.held(run) is None
    (run / lock.FILE).unlink()
    os.link(treasure / "file", run / lock.FILE)
    with lock.Lock(run) as ours:
        assert ours.holder().startswith("another process") or str(os.getpid()) in ours.holder()
    unharmed()


def test_records_of_endless_lines_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """A sparse file of 1 TB without a newline, behind one sound line."""
    with open(tmp_path / records.FILE, "wb") as file:
        file.write(b'{"kind": "event", "step": 1, "tokens": 64, "name": "x", "detail": {}}\n')
        file.truncate(200 << 20)
    assert [number for number, record in records.lines(tmp_path) if record] == [1]
