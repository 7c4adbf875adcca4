"""A disk that is full, for a while or for good, costs neither a run nor its checkpoints."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.short_run import options
from tests.violence import assert_same_end, events, full_disk
from torch import Tensor

from overnight import checkpoint, cli, records, saving, train
from overnight.saved import list_steps

Train = Callable[..., Any]


@pytest.mark.parametrize("limit", [300, 10_000], ids=["records too", "checkpoints only"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    limit: int, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From step 3 to step 10; the run goes on, says so, and in the end nothing is missing."""
    monkeypatch.setattr("overnight.saving.AGAIN_AFTER", 0.0)
    assert cli.run(options(data_folder, tmp_path / "whole")) == 0
    intact, disk = train.Session.update, contextlib.ExitStack()

    def update(self: train.Session, step: int) -> str:
        if step == 3:
            disk.enter_context(full_disk(limit))
        if step == 11:
            disk.close()
        return intact(self, step)

    monkeypatch.setattr(train.Session, "update", update)
    capsys.readouterr()
    with disk:
        assert cli.run(options(data_folder, tmp_path / "full")) == 0
    said = capsys.readouterr().out
    assert "NOT SAVED: " in said
    assert ("records wait in memory, training goes on" in said) == (limit == 300)
    assert events(tmp_path / "full", "save_failed")
    assert_same_end(tmp_path / "full", tmp_path / "whole")
    assert [event["step"] for event in events(tmp_path / "full", "checkpoint")][-1] == 16


def test_a_disk_that_has_room_again_while_the_end_waits_for_it_costs_nothing(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record comes any more that would take those with it that wait."""
    assert cli.run(options(data_folder, tmp_path / "whole")) == 0
    intact, disk, slept = train.Session.update, contextlib.ExitStack(), []

    def update(self: train.Session, step: int) -> str:
        if step == 3:
            disk.enter_context(full_disk(300))
        return intact(self, step)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            disk.close()

    monkeypatch.setattr(train.Session, "update", update)
    monkeypatch.setattr(saving, "PATIENCE", 5.0)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with disk:
        assert cli.run(options(data_folder, tmp_path / "full")) == 0
    assert len(slept) == 2
    assert_same_end(tmp_path / "full", tmp_path / "whole")


def test_a_disk_that_will_not_do_is_told_at_the_start(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    assert cli.run(options(data_folder, tmp_path / "run")) == 0
    # Four of 3,696 parameters: the newest two, the best, and one being written.
    said = "The disk has 100.0 kB free; this run's checkpoints want 177.4 kB (--keep)."
    assert said in capsys.readouterr().out


def test_older_checkpoints_make_room_for_a_new_one(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A disk for two and a half checkpoints, and --keep 9: the newest before it stays until it is there."""
    run, intact = tmp_path / "run", checkpoint.write_tensors

    def full(tensors: dict[str, Tensor], path: Path) -> str:
        if len(list_steps(run)) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return intact(tensors, path)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    assert cli.run(options(data_folder, run, "--keep", 9, "--save-every", 2, "--eval-every", 0)) == 0
    assert list_steps(run) == [14, 16]
    assert "NOT SAVED" not in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(
    stopped: Path, trained: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "PATIENCE", 1.5)
    with full_disk(8_000):  # the weights have more bytes
        full = train(stopped)
    assert full.code == 1
    assert full.out.count("NOT SAVED: File too large") >= 2, "loudly, and each time"
    assert full.err.startswith("overnight: the checkpoint was not saved: File too large")
    names = [r["name"] for r in records.read(stopped) if r["kind"] == "event"]
    assert "save_failed" in names
    assert "done" not in names
    assert list_steps(stopped) == [1, 2]
    assert train(stopped).code == 0
    assert_same_end(stopped, trained)
