"""A stranger's run folder makes no verb write to another place, hang, or destroy a file of the user's."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Outcome

from overnight import ladder, trackers
from overnight.overwriting import overwrite_problem

Cli = Callable[..., Outcome]
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
needs_fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
WRITERS = {
    "report.html": ("report", "runs/x"),
    "inspect.html": ("inspect", "runs/x"),
    "ladder.json": ("ladder", "--out", "runs/x/ladder.json", "--device", "cpu", "--steps", 1),
    "ladder.html": ("ladder", "--out", "runs/x/ladder.json", "--device", "cpu", "--steps", 1),
}


@pytest.fixture(autouse=True)
def _one_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "RUNGS", ladder.RUNGS[:1])


@needs_links
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(name: str, run: Path, cli: Cli, tmp_path: Path) -> None:
    """Neither at the name itself nor at those of unfinished copies, of this version and earlier ones."""
    treasure, missing = tmp_path / "treasure", tmp_path / "missing"
    treasure.write_text("mine")
    for copy in (f".{name}.partial", f".{name}", f"{name}.tmp", f".{name}.tmp"):
        (run / copy).symlink_to(treasure)
    (run / name).symlink_to(missing)
    assert cli(*WRITERS[name]).code == 0
    assert (run / name).is_file()
    assert not (run / name).is_symlink()
    assert not missing.exists()
    (run / name).unlink()
    (run / name).symlink_to(treasure)
    outcome = cli(*WRITERS[name])
    assert outcome.code == 2
    assert "exists and is no" in outcome.err
    assert treasure.read_text() == "mine"


@needs_fifos
@pytest.mark.parametrize("name", WRITERS)
def test_a_fifo_or_a_device_in_its_place_is_said_and_not_waited_for(name: str, run: Path, cli: Cli) -> None:
    for what, make in (("a FIFO", os.mkfifo), ("a device", lambda path: os.symlink("/dev/zero", path))):
        make(run / name)
        outcome = cli(*WRITERS[name])
        assert outcome.code == 2
        assert outcome.err == (
            f"overnight: runs/x/{name} cannot be written: it is {what}. Give another --out.\n"
        )
        (run / name).unlink()


@pytest.mark.parametrize("name", ["report.html", "inspect.html"])
def test_a_file_of_somebody_elses_stays(name: str, run: Path, cli: Cli) -> None:
    """But what the verb itself wrote is written again."""
    assert [cli(*WRITERS[name]).code for _ in range(2)] == [0, 0]
    for content in (b"<!doctype html>\nmine", b"\xff" * 2_000_000, b""):
        (run / name).write_bytes(content)
        assert cli(*WRITERS[name]).code == 2
        assert (run / name).read_bytes() == content


def test_what_is_unreadable_or_of_another_kind_is_not_ours(tmp_path: Path) -> None:
    def wrong(content: bytes) -> bool:
        raise ValueError

    path = tmp_path / "x"
    assert overwrite_problem(path, wrong, "is not ours") is None
    path.write_text("x")
    assert (
        overwrite_problem(path, wrong, "is not ours") == f"{path} exists and is not ours: give another --out."
    )
    assert overwrite_problem(path / "y", wrong, "is not ours") == (
        f"{path} is a file, so {path / 'y'} cannot be made: choose another place."
    )


@needs_links
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_trackers_write_into_no_linked_folder(
    name: str, train: Callable[..., Outcome], run: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (run / name).symlink_to(home)
    (run / ".wandb").symlink_to(home)  # which W&B would take
    outcome = train(run, "--track", name, "--steps", 6)
    assert outcome.code == 0
    assert f"{name} is told nothing more, training goes on: it is a symbolic link" in outcome.out
    assert list(home.iterdir()) == []
    (run / name).unlink()
    assert train(run, "--track", name, "--steps", 8).code == 0
    assert list(home.iterdir()) == []
    assert list((run / name).iterdir())


def test_no_tracker_writes_under_a_name_that_could_be_foreseen(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A stranger who knows the time, the host and the process still misses 64 bits."""
    monkeypatch.setattr(trackers.secrets, "token_hex", lambda size: "random" * size)
    assert train(tmp_path / "x", "--track", "tensorboard,wandb").code == 0
    [events] = (tmp_path / "x" / "tensorboard").iterdir()
    [folder] = (tmp_path / "x" / "wandb").glob("offline-run-*")
    assert events.name.endswith("random" * 8)
    assert folder.name.endswith("random" * 8)


@needs_links
def test_a_profile_is_written_through_no_link(train: Callable[..., Any], tmp_path: Path) -> None:
    run, treasure = tmp_path / "run", tmp_path / "treasure"
    assert train(run).code == 0
    treasure.write_text("mine")
    for name in ("profile.json", ".profile.json", ".profile.json.tmp", "profile.json.tmp"):
        (run / name).symlink_to(treasure)
    outcome = train(run, "--steps", 14, "--profile")
    assert outcome.code == 0
    assert treasure.read_text() == "mine"
    assert "traceEvents" in (run / "profile.json").read_text()
    assert not (run / "profile.json").is_symlink()
    assert not list(run.glob(".profile.json.*.partial"))
