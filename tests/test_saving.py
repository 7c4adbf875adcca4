"""Saves that fail for a while, for whatever reason, and run folders that vanish, cost nothing."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.violence import assert_same_end, command, events, wait_for_step

from overnight import checkpoint, cli, lock, records, runs, saved, saving, train
from overnight.lock import Lock

OPTIONS = ["train", "shakespeare-cpu", *TINY, "--steps", "12", "--save-every", "3", "--eval-every", "4"]


@pytest.fixture
def go(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`go("x", {5: act})`: train; before step 5 is made, `act()`."""
    monkeypatch.setattr(saving, "AGAIN_AFTER", 0.0)
    update = train.Session.update

    def begin(name: str, acts: dict[int, Callable[[], object]]) -> int:
        def acting(self: train.Session, step: int) -> str:
            self.saver.collect(wait=True)
            acts.get(step, lambda: None)()
            return update(self, step)

        monkeypatch.setattr(train.Session, "update", acting)
        return cli.run([*OPTIONS, "--data", str(data_folder), "--run", str(tmp_path / name)])

    return begin


@pytest.fixture
def whole(go: Callable[..., int], tmp_path: Path) -> Path:
    assert go("whole", {}) == 0
    return tmp_path / "whole"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.EPERM, errno.EROFS, None])
def test_a_folder_that_cannot_be_used_for_a_while(
    number: int | None, go: Callable[..., int], whole: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Neither to write to nor to list: permissions, a file server that is restarted, a bad disk."""

    def fail(*_: object) -> None:
        raise OSError() if number is None else OSError(number, os.strerror(number), str(tmp_path / "run"))

    broken = pytest.MonkeyPatch()

    def begin() -> None:
        for name in ("subfolder", "list_steps", "sync"):
            broken.setattr(checkpoint, name, fail)

    capsys.readouterr()
    assert go("run", {3: begin, 11: broken.undo}) == 0
    said = capsys.readouterr().out
    assert "NOT SAVED" in said
    assert "None" not in said
    assert events(tmp_path / "run", "save_failed")
    assert_same_end(tmp_path / "run", whole)


def without_override() -> None:
    """Let permissions hold for root's process too: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are dropped."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                os._exit(99)


@pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities as Linux has them")
def test_permissions_that_are_taken_away_for_a_while(data_folder: Path) -> None:
    """By chmod."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        shutil.copytree(data_folder, folder / "data")
        long = ["--steps", 3000, "--save-every", 5, "--eval-every", 0, "--sample-every", 0]
        line = command(*OPTIONS, *long, "--data", folder / "data", "--run", folder / "run")
        process = subprocess.Popen(line, preexec_fn=without_override, stdout=subprocess.DEVNULL)
        try:
            wait_for_step(folder / "run", 6, process)
            while not events(folder / "run", "checkpoint"):
                assert process.poll() is None
                time.sleep(0.01)
            (folder / "run").chmod(0o500)
            (folder / "run" / "checkpoints").chmod(0o500)
            while not events(folder / "run", "save_failed"):
                assert process.poll() is None
                time.sleep(0.01)
            (folder / "run").chmod(0o700)
            (folder / "run" / "checkpoints").chmod(0o700)
            assert process.wait(120) == 0
            assert saved.newest_sound(folder / "run")[0].step == 3000  # type: ignore[union-attr]
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("how", ["deleted", "moved", "parent moved", "moved, and an empty one made"])
def test_a_run_folder_that_vanishes_is_made_again_for_the_last_save(
    how: str, go: Callable[..., int], whole: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "runs"
    run = folder / "run"
    vanish: dict[str, Callable[[], object]] = {
        "deleted": lambda: shutil.rmtree(run),
        "moved": lambda: run.rename(tmp_path / "elsewhere"),
        "parent moved": lambda: folder.rename(tmp_path / "elsewhere"),
        "moved, and an empty one made": lambda: (run.rename(tmp_path / "elsewhere"), run.mkdir()),
    }
    assert go("runs/run", {8: vanish[how]}) == 0
    assert "was moved or deleted: it is made again" in capsys.readouterr().out
    assert_same_end(run, whole)
    assert runs.read_config(run)[0].steps == 12
    assert (run / runs.TOKENIZER).is_file()
    assert go("runs/run", {}) == 0, "it is complete"
    assert not (run / lock.FILE).exists()


@pytest.mark.parametrize("whose", ["that trains", "that has ended", "of something else"])
def test_another_folder_of_the_same_name_is_left_alone(
    whose: str, go: Callable[..., int], whole: Path, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Ours was moved away, and there is another run by now: its checkpoints must not be pruned."""
    run = tmp_path / "run"
    monkeypatch.setattr(saving, "PATIENCE", 0.0)

    def replace() -> None:
        run.rename(tmp_path / "elsewhere")
        shutil.copytree(trained, run)
        if whose == "that trains":
            (run / lock.FILE).write_text("process 1 on another-host")
        if whose == "of something else":
            shutil.rmtree(run)
            run.mkdir()
            (run / "notes.txt").touch()
        before.update(content(run))

    before: dict[Path, bytes] = {}
    assert go("run", {8: replace}) == 1
    said = capsys.readouterr().err
    assert "the run was moved away, and another folder has its name" in said
    assert "give that one as --run" in said
    assert go("elsewhere", {}) == 0
    assert_same_end(tmp_path / "elsewhere", whole)
    assert content(run) == before


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    os.truncate(path, 500)


def replace_by_another(path: Path) -> None:
    (path.parent / "new").write_text("edited\n")
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "was deleted: it is written again"),
        (replace_by_another, "was replaced: it is written again, the other file is damaged_records_1.jsonl"),
        (cut, "by another program: what was cut off is lost"),
    ],
)
def test_records_that_vanish_while_a_run_trains(
    harm: Callable, said: str, go: Callable[..., int], whole: Path, tmp_path: Path, capsys
) -> None:
    """Noticed at the next save; the open file has what was deleted."""
    run = tmp_path / "run"
    assert go("run", {8: lambda: harm(run / records.FILE)}) == 0
    assert said in capsys.readouterr().out
    assert saved.newest_sound(run)[1] == []
    state = saved.newest_sound(run)[0]
    assert state is not None
    assert records.problem(run, state.records_bytes, state.records_sha256) == ""
    if harm is not cut:
        assert_same_end(run, whole)
        assert len(list(records.read(run))) == len(list(records.read(whole))) + 1
    assert go("run", {}) == 0, "it is complete"


def test_a_lock_removes_its_own_file_only(tmp_path: Path) -> None:
    with Lock(tmp_path) as ours:
        assert not ours.lost()
        (tmp_path / lock.FILE).unlink()
        assert not ours.lost(), "nobody else has it"
        (tmp_path / lock.FILE).write_text("process 1 on another-host")
        assert ours.lost()
    assert (tmp_path / lock.FILE).exists()


def test_records_whose_handle_has_died_go_on_in_the_same_file(tmp_path: Path, monkeypatch) -> None:
    """ESTALE: a file server was restarted."""
    log = records.Records(tmp_path, pytest.fail)
    log.event(0, 0, "start", {})

    handle = log._file

    class Stale:
        def fileno(self) -> int:
            return handle.fileno()

        def write(self, content: bytes) -> int:
            raise OSError(errno.ESTALE, "Stale file handle")

        def close(self) -> None:
            handle.close()

    log._file = Stale()  # type: ignore[assignment]
    log.event(1, 64, "done", {})
    log.close()
    assert [record["name"] for record in records.read(tmp_path)] == ["start", "done"]
