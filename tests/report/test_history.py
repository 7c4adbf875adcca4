"""A history is what the records say, read once, as they grow, whatever a resume cuts off."""

import math
from pathlib import Path

import pytest
from tests.report.made import Night, full_night

from overnight import records
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
    assert growing.events == at_once.events
    assert growing.samples == at_once.samples
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
