"""After too many updates that are not finite, training goes back to a checkpoint and skips their data."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tests.short_run import BAD, options, poison
from tests.violence import assert_same_end, events, measured

from overnight import cli, records, start, train
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.saved import folder, list_steps
from overnight.start import Start
from overnight.stop import Stop
from overnight.world import World

__all__ = ["poison"]


@pytest.mark.parametrize("lag", [0, 1])
def test_too_many_in_a_row_go_back_and_leave_their_windows_out(
    lag: int, poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether their numbers are read at once or, as on a GPU, when the next step is on its way."""
    monkeypatch.setattr(World, "lag", lag)
    poison(*BAD)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    (gone,) = events(run, "gone_back")
    assert gone["detail"] == {"steps": [6, 8], "to": 4, "skipped": [[20, 32]]}
    assert [event["step"] for event in events(run, "resume")] == [4]
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))
    assert all(r["loss"] is not None for r in measured(run) if r["kind"] == "train")
    assert json.loads((folder(run, 16) / "state.json").read_text())["skipped"] == [[20, 32]]


def test_a_run_that_went_back_resumes_exactly(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped among the bad steps, after them, and once more after the next checkpoint."""
    poison(*BAD)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.run(options(data_folder, whole)) == 0
    for updates in (7, 3, 3):
        calls: list[int] = []

        def asked(self: Stop, calls: list[int] = calls, updates: int = updates) -> str:
            calls.append(1)
            return "preempted" if len(calls) == updates else ""

        monkeypatch.setattr(Stop, "asked", asked)
        assert cli.run(options(data_folder, cut)) == 75
    monkeypatch.undo()
    poison(*BAD)
    assert cli.run(options(data_folder, cut)) == 0
    assert len(events(cut, "resume")) > len(events(whole, "resume"))
    assert_same_end(cut, whole)


def test_the_last_good_checkpoint_outlives_stops_among_bad_steps(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --keep 1, stopped in steps 7 and 8 of a bad row: newer, but not to go back to."""
    row, run = (6, 7, 8, 9, 10), tmp_path / "run"
    more = ["--keep", 1, "--train.max-bad-steps", 5]
    poison(*row)
    for _ in range(2):
        monkeypatch.setattr(Stop, "asked", lambda self: "preempted" if events(run, "nonfinite") else "")
        assert cli.run(options(data_folder, run, *more)) == 75
    monkeypatch.undo()
    poison(*row)
    assert list_steps(run) == [4, 8]
    assert cli.run(options(data_folder, run, *more)) == 0
    assert events(run, "gone_back")[0]["detail"]["to"] == 4


def test_going_back_needs_no_room_on_the_disk(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off the records makes room for the events in it."""
    poison(*BAD)
    whole, run, intact = tmp_path / "whole", tmp_path / "run", train.Session.back_before
    assert cli.run(options(data_folder, whole)) == 0

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def back_before(self: train.Session, row: train.BadSteps) -> Start:
        for module in (records, start):
            monkeypatch.setattr(module, "write_synced", full)
        return intact(self, row)

    monkeypatch.setattr(train.Session, "back_before", back_before)
    assert cli.run(options(data_folder, run)) == 0
    assert_same_end(run, whole)
    assert [e["step"] for e in events(run, "nonfinite")] == [e["step"] for e in events(whole, "nonfinite")]


def test_with_no_checkpoint_yet_it_begins_again(poison, data_folder: Path, tmp_path: Path) -> None:
    poison(1, 2, 3)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    assert events(run, "gone_back")[0]["detail"] == {"steps": [1, 3], "to": 0, "skipped": [[0, 12]]}
    seen = np.concatenate([Batches(Data(data_folder).split("train"), 16, lambda _: 4, 1337).windows(3)])
    skipping = Batches(Data(data_folder).split("train"), 16, lambda _: 4, 1337, skipped=[[0, 12]])
    assert seen.tolist() == skipping.windows(0).tolist()
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))


def test_where_going_back_does_not_help_it_gives_up_clearly(
    poison, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(*range(6, 40))
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 1
    error = capsys.readouterr().err
    assert "steps 6 to 8, again after going back to step 4" in error
    assert f"--init-from {run}@4 --optim.lr" in error
    assert len([line for line in error.splitlines() if line.startswith(("overnight:", "Try"))]) == 2
    assert list_steps(run) == [4]
    assert events(run, "gave_up")[0]["detail"] == {"steps": [6, 8], "checkpoint": 4}
    # What it advises works.
    advice = ["--init-from", f"{run}@4", "--optim.lr", 1e-4, "--optim.min-lr", 0, "--steps", 3]
    assert cli.run(options(data_folder, tmp_path / "new", *advice)) == 0


def test_a_run_may_go_back_more_than_once_as_long_as_it_comes_further(
    poison, data_folder: Path, tmp_path: Path
) -> None:
    """The second row is of windows that would have come later: 14, 15, 16 move up by three steps."""
    poison(*BAD, 14, 15, 16)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    assert [(e["step"], e["detail"]["to"]) for e in events(run, "gone_back")] == [(8, 4), (13, 8)]
    assert events(run, "gone_back")[1]["detail"]["skipped"] == [[20, 32], [52, 64]]
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))
