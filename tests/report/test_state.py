"""Whether a run trains, is complete, was stopped or ended without a word."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from tests.report.made import Night, lecture, make_run, said

from overnight import lock
from overnight.report import facts


def test_a_run_that_trains_says_how_far_it_is(place: Path) -> None:
    night = Night()
    night.event(0, "start", world={"size": 8})
    for step in range(1, 101):
        night.train(step, seconds=1.0)
    make_run(place, lecture(place), night)
    assert said(place, night, wait=5)[1] == (
        "plain",
        "Training: 100 of 19,073 steps, 1 min 40 s of training so far, 524,288 tokens/s, "
        "about 5 h 16 min left.",
    )


def test_a_run_that_fell_silent_is_told_from_one_that_trains(place: Path) -> None:
    night = Night()
    night.event(0, "start", world={"size": 8})
    night.train(1)
    make_run(place, lecture(place), night)
    tone, text = said(place, night, wait=3600)[1]
    assert (tone, text.split(":")[0]) == ("bad", "Ended without a word after 1 of 19,073 steps")
    with lock.Lock(place):  # by this process, whose own look would not see it
        assert facts.open_run(str(place)).state(night.clock + timedelta(seconds=3600)) == "silent"


def test_a_process_that_holds_the_run_trains_and_one_that_was_killed_does_not(place: Path) -> None:
    """However long ago, or however lately, the last record was."""
    night = Night()
    night.event(0, "start", world={"size": 8})
    night.train(1)
    make_run(place, lecture(place), night)
    code = "import sys; from pathlib import Path; from overnight.lock import Lock; "
    code += "lock = Lock(Path(sys.argv[1])); lock.take(); input('held')"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.read(4) == "held"
    assert facts.open_run(str(place)).state(night.clock + timedelta(hours=9)) == "training"
    holder.kill()
    holder.wait()
    assert facts.open_run(str(place)).state(night.clock + timedelta(seconds=1)) == "silent"


@pytest.mark.parametrize(
    ("event", "tone", "begins"),
    [
        ("preempted", "warning", "Stopped (preempted) after 1 of 19,073 steps, saved."),
        ("interrupted", "warning", "Stopped (interrupted) after 1 of 19,073 steps, saved."),
        ("gave_up", "bad", "Gave up after 1 of 19,073 steps"),
    ],
)
def test_a_run_that_said_why_it_ended_is_believed(place: Path, event: str, tone: str, begins: str) -> None:
    night = Night()
    night.event(0, "start", world={"size": 8})
    night.train(1)
    night.event(1, event)
    make_run(place, lecture(place), night)
    found = said(place, night)[1]
    assert found[0] == tone
    assert found[1].startswith(begins)


@pytest.mark.parametrize(
    ("event", "happened"), [("preempted", "1 preemption"), ("interrupted", "1 interruption")]
)
def test_a_run_that_was_stopped_does_not_say_that_it_was_not(place: Path, event: str, happened: str) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    night.event(1, event)
    make_run(place, lecture(place), night)
    lines = [text for _, text in said(place, night)]
    assert f"Stopped ({event}) after 1 of 19,073 steps, saved. The same command goes on." in lines
    assert f"On the way: {happened}." in lines
    night.event(1, "resume")
    night.train(2)
    night.write(place)
    assert f"On the way: {happened}, 1 resume." in [text for _, text in said(place, night)]


def test_a_run_that_ended_without_a_word_was_not_without_interruption(place: Path) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    make_run(place, lecture(place), night)
    lines = [text for _, text in said(place, night, wait=3600)]
    assert "On the way: no loss spike, no update that was not finite." in lines
    lines = [text for _, text in said(place, night, wait=1)]
    assert "On the way: no loss spike, no update that was not finite, no interruption." in lines


def test_a_record_from_the_future_is_not_recent(place: Path) -> None:
    """A clock that was set back, or a stranger's: the run counts as ended until it records something."""
    night = Night()
    night.event(0, "start")
    night.train(1)
    make_run(place, lecture(place), night)
    run = facts.open_run(str(place))
    for ahead in (timedelta(days=365), timedelta(seconds=600)):
        assert run.state(night.clock - ahead) == "silent"
    night.train(2)
    night.write(place)
    assert facts.refresh(run).state(night.clock - timedelta(days=365)) == "training", "it was seen to grow"
