"""A history is what the records say, read once, as they grow, whatever a resume cuts off."""

import json
import math
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.report.made import Night, full_night

from overnight import records
from overnight.report import history as history_module
from overnight.report.history import History


def test_every_record_is_in_its_column(tmp_path: Path) -> None:
    full_night(30, every=10).write(tmp_path)
    history = History(tmp_path).update()
    assert history.train["step"].tolist() == list(range(1, 31))
    assert history.train["tokens"][-1] == history.tokens == 30 * 524_288
    assert history.val["step"].tolist() == [10, 20, 30]
    assert history.hellaswag.last("acc_norm") == pytest.approx(0.304)
    assert [sample["step"] for sample in history.samples] == [10, 20, 30]
    assert [event["name"] for event in history.events_named("spike", "done")] == ["spike", "spike", "done"]
    assert history.damaged == 0


def test_what_is_read_as_it_grows_is_what_is_read_at_once(tmp_path: Path) -> None:
    night = full_night(30, every=10)
    whole = "".join(line + "\n" for line in night.lines).encode()
    growing = History(tmp_path)
    for end in [*range(0, len(whole), 997), len(whole)]:  # cuts lines anywhere
        (tmp_path / records.FILE).write_bytes(whole[:end])
        growing = growing.update()
    at_once = History(tmp_path).update()
    for name in ("loss", "hours", "tokens"):
        assert growing.train[name].tolist() == at_once.train[name].tolist()
    assert list(growing.events) == list(at_once.events)
    assert list(growing.samples) == list(at_once.samples)
    assert growing.damaged == 0


def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path) -> None:
    night = Night()
    night.event(0, "start", world={"size": 1})
    for step in range(1, 21):
        night.train(step)
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert history.step == 20
    del night.lines[11:]  # back to step 10
    night.event(10, "resume", world={"size": 1})
    for step in range(11, 31):  # longer than before: its size does not tell
        night.train(step, loss=1.0)
    night.write(tmp_path)
    history = history.update()
    assert history.train["step"].tolist() == list(range(1, 31))
    assert history.train["loss"][10:].tolist() == [1.0] * 20


def test_pauses_are_no_training_and_lost_work_is(tmp_path: Path) -> None:
    night = Night()
    night.event(0, "start", world={"size": 8})
    night.train(1, seconds=1800)
    night.wait(7 * 3600)  # a stopped machine
    night.event(1, "resume", world={"size": 4})
    night.train(2, seconds=3600)
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert history.train["hours"].tolist() == [0.5, 1.5]
    assert history.hours == 1.5
    assert history.rank_hours == 8 * 0.5 + 4 * 1.0


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    night = Night()
    night.train(1)
    night.lines += ["{}", "nonsense", '{"kind": "train", "step": 2, "tokens": 1, "loss": null}']
    night.lines += ['{"kind": "train", "step": 3, "tokens": 1, "loss": 1.0, "time": "yesterday", "lr": "x"}']
    night.train(4)
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert history.damaged == 2
    assert history.train["step"].tolist() == [1, 2, 3, 4]
    assert math.isnan(history.train["loss"][1])
    assert math.isnan(history.train["lr"][2])


def test_a_run_without_records_has_an_empty_history(tmp_path: Path) -> None:
    history = History(tmp_path).update()
    assert (len(history.train), history.hours, history.last_time) == (0, 0.0, None)


def jumping(night: Night, at: int, seconds: float) -> Night:
    """The same records, with a wall clock that was set on or back before record number `at`."""
    for number, line in enumerate(night.lines):
        record = json.loads(line)
        if number >= at:
            told = datetime.fromisoformat(record["time"]) + timedelta(seconds=seconds)
            night.lines[number] = json.dumps(record | {"time": told.isoformat()})
    night.clock += timedelta(seconds=seconds)
    return night


@pytest.mark.parametrize("seconds", [365 * 86_400, -86_400])
def test_a_clock_that_jumps_between_any_two_records_changes_no_hours(tmp_path: Path, seconds: float) -> None:
    full_night(12, every=4).write(tmp_path)
    expected = History(tmp_path).update()
    for at in range(len(full_night(12, every=4).lines)):
        jumping(full_night(12, every=4), at, seconds).write(tmp_path)
        found = History(tmp_path).update()
        assert (found.hours, found.rank_hours) == (expected.hours, expected.rank_hours)
        for name in ("train", "val", "hellaswag"):
            assert getattr(found, name)["hours"].tolist() == getattr(expected, name)["hours"].tolist()
        assert [one["hours"] for one in found.events] == [one["hours"] for one in expected.events]


def test_evaluations_are_part_of_the_time_from_the_next_event_on(tmp_path: Path) -> None:
    """By hand: 2 steps of 1,000 s, 600 s of validation, an event, 1 step."""
    night = Night()
    night.event(0, "start")
    night.train(1, seconds=1000)
    night.train(2, seconds=1000)
    night.wait(600)
    night.event(2, "checkpoint")
    night.train(3, seconds=1000)
    night.write(tmp_path)
    hours = History(tmp_path).update().train["hours"]
    assert (3600 * hours).tolist() == pytest.approx([1000, 2000, 3600])


def test_a_process_that_goes_back_counts_its_time_once(tmp_path: Path) -> None:
    """Its next session begins at whatever its clock has."""
    night = Night()
    night.event(0, "start", world={"size": 2})
    night.train(1, seconds=3600)
    night.event(1, "gone_back", to=0)
    night.record("event", 0, name="resume", detail={"world": {"size": 2}}, elapsed=3600.0)
    night.record("event", 0, name="spike", detail={}, elapsed=5400.0)
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert (history.hours, history.rank_hours) == (1.5, 3.0)


def test_runs_of_earlier_versions_have_the_time_of_their_steps(tmp_path: Path) -> None:
    night = full_night(10)
    records_of = [json.loads(line) for line in night.lines]
    for record in records_of:
        record.pop("elapsed", None)
    night.lines = [json.dumps(record) for record in records_of]
    night.write(tmp_path)
    assert 3600 * History(tmp_path).update().hours == pytest.approx(10 * 0.3)


@pytest.mark.parametrize("value", [None, True, "1", [], -5.0, 1e300, 10**400, math.inf, math.nan])
def test_times_that_are_none_move_no_clock(tmp_path: Path, value: Any) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1, seconds=1800)
    night.record("train", 2, loss=1.0, step_ms=value)
    night.record("event", 2, name="spike", detail={}, elapsed=value)
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert (history.hours, history.damaged) == (0.5, 0)


def test_a_line_that_is_too_long_is_damaged_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is a record up to there, and where it is written bit by bit."""
    monkeypatch.setattr(history_module, "LONGEST_LINE", 400)
    night, path = Night(), tmp_path / records.FILE
    night.train(1)
    night.train(2)
    before, after = night.lines
    content = f"{before}\n{before}{' ' * 1000}\n{after}\n".encode()
    growing = History(tmp_path)
    for end in range(0, len(content) + 1, 7):
        path.write_bytes(content[:end])
        growing = growing.update()
    path.write_bytes(content)
    for found in (growing.update(), History(tmp_path).update()):
        assert found.damaged == 1
        assert found.train["step"].tolist() == [1, 2]


def test_a_file_of_gigabytes_without_a_line_takes_no_memory(tmp_path: Path) -> None:
    """Sparse, so it has no room on the disk either; beyond what a run can have it is not read at all."""
    path = tmp_path / records.FILE
    code = """if True:
        import resource, sys
        from pathlib import Path
        from overnight.report.history import History
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        print(History(Path(sys.argv[1])).update().damaged)
    """
    with open(path, "wb") as file:
        file.truncate(1_500_000_000)
    command = [sys.executable, "-c", code, str(tmp_path)]
    pytest.importorskip("resource", reason="no limits of memory here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="it is larger than"):
        History(tmp_path).update()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / records.FILE)
    with pytest.raises(OSError, match="it is a FIFO"):
        History(tmp_path).update()


def test_events_and_samples_are_kept_up_to_a_size_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night()
    for step in range(1, 101):
        night.event(step, "spike", loss=1.0)
        night.record("sample", step, prompt="", text=str(step))
    night.write(tmp_path)
    monkeypatch.setattr(history_module, "KEPT", 2_000)
    history = History(tmp_path).update()
    for kept in (history.events, history.samples):
        steps = [record["step"] for record in kept]
        assert steps == list(range(101 - len(steps), 101))
        assert 5 < len(steps) < 50
        assert len(kept) + kept.left_out == 100


def test_what_is_nested_too_deep_to_be_printed_is_damaged(tmp_path: Path) -> None:
    night = Night()
    night.train(1)
    deep = json.dumps({"kind": "event", "step": 1, "tokens": 1, "name": "x", "detail": {}})
    night.lines += [deep.replace("{}", '{"a": ' * depth + "1" + "}" * depth) for depth in (20, 100, 900)]
    night.write(tmp_path)
    history = History(tmp_path).update()
    assert (len(history.events), history.damaged) == (1, 2)
