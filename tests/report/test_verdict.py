"""The verdict says what can be said, word by word, and nothing where nothing can."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.conftest import Outcome
from tests.report.made import Night, fineweb, full_night, lecture, make_run

from overnight import lock
from overnight.checks import LIMITS
from overnight.report import facts
from overnight.report.verdict import verdict


def said(run: Path, night: Night | None = None, wait: float = 0.0) -> list[tuple[str, str]]:
    now = night.clock + timedelta(seconds=wait) if night else None
    return [(one.tone, one.text) for one in verdict(facts.open_run(str(run)), now)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "x"


def test_a_run_on_fineweb_is_held_against_published_results(place: Path) -> None:
    fingerprint = fineweb(Path("data/fineweb-edu"))
    night = full_night(100, every=50)
    night.lines = [line for line in night.lines if '"val"' not in line]
    night.validate(100, 3.05)
    config = replace(lecture(place), steps=100)
    lines = said(make_run(place, config, night, fingerprint))
    whose = "OpenAI's GPT-2 124M (lecture notebook)"
    assert lines[0] == ("good", f"Validation loss 3.0500 after 52.4 M tokens: better than 3.2924, {whose}.")
    assert lines[1] == (
        "good",
        f"HellaSwag 0.3040 (acc_norm, completion style, 10,042 items): better than 0.2945, {whose}; "
        "not better than 0.3370, GPT-3 124M (paper; its own way of asking); "
        "not better than 0.4893, OpenAI's GPT-2 1558M.",
    )
    assert ("plain", "On the way: 2 loss spikes, 1 resume.") in lines


def test_data_of_another_fingerprint_proves_nothing(place: Path) -> None:
    fineweb(Path("data/fineweb-edu"))
    lines = said(make_run(place, replace(lecture(place), steps=100), full_night(100), "f" * 64))
    assert not any("better than 3.29" in text for _, text in lines)
    assert lines[-1][0] == "warning"
    assert "is not the data that the run was trained on" in lines[-1][1]


def test_a_real_run_on_a_text_of_its_own_gets_yardsticks_and_no_verdict(run: Path) -> None:
    lines = said(run)
    assert lines[0][1].startswith("Validation loss ")
    assert lines[0][1].endswith(" bits per byte.")
    assert lines[1][1].startswith(
        "No published result is on this text, so there is no verdict. `xz -9e` makes "
    )
    assert "Guessing evenly among 20 tokens would lose 2.9957." in lines[1][1]
    assert lines[2][0] == "good"
    assert lines[2][1].startswith("Complete: 4 of 4 steps, ")


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


def test_overfitting_is_named_with_the_best_step(place: Path) -> None:
    night = full_night(10, every=50)
    night.lines = [line for line in night.lines if '"val"' not in line]
    for step, loss in ((4, 3.0), (6, 2.5), (8, 2.7)):
        night.validate(step, loss)
    make_run(place, lecture(place), night)
    risen = "The validation loss was best at step 6 (2.5000) and has risen since, to 2.7000 at step 8."
    assert ("warning", risen) in said(place)
    (place / "checkpoints" / "step_00000006").mkdir(parents=True)
    assert ("warning", f"{risen} Its checkpoint is there: {place}@6.") in said(place)


def test_the_last_validation_is_of_other_tokens_and_no_sign_of_anything(place: Path) -> None:
    night = full_night(10, every=50)
    night.lines = [line for line in night.lines if '"val"' not in line]
    for step, loss, tokens in ((4, 3.0, 1000), (6, 2.5, 1000), (10, 2.7, 5000)):
        night.record("val", step, loss=loss, bits_per_byte=1.0, val_tokens=tokens)
    make_run(place, lecture(place), night)
    assert not any("has risen" in text for _, text in said(place))


def test_what_a_resume_takes_again_is_counted_once(place: Path) -> None:
    night = Night()
    night.event(0, "start")
    night.event(5, "spike", loss=9.0)
    night.event(8, "nonfinite", loss=None)
    night.event(9, "gone_back", steps=[8, 9], to=4)
    night.event(4, "resume")
    night.event(5, "spike", loss=9.0)
    make_run(place, lecture(place), night)
    happened = "1 loss spike, 1 update that was not finite, 1 return to an earlier checkpoint"
    assert ("warning", f"On the way: {happened}.") in said(place)


def test_what_was_not_finite_is_a_warning(place: Path) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    night.event(2, "nonfinite", loss=None)
    night.event(3, "nonfinite", loss=None)
    night.event(4, "unusual_loss", loss=9.9, detail="NOT NORMAL: above 3.95 +- 0.1.")
    make_run(place, lecture(place), night)
    lines = said(place)
    assert ("bad", "Step 4: NOT NORMAL: above 3.95 +- 0.1.") in lines
    happened = "2 updates that were not finite, 1 validation outside its recipe's band"
    assert ("warning", f"On the way: {happened}.") in lines


def test_a_loss_that_is_no_number_is_said_first(place: Path) -> None:
    make_run(place, lecture(place), Night())
    only = Night()
    only.record("val", 4, loss=None, bits_per_byte=None, val_tokens=5)
    only.write(place)
    assert said(place)[0] == ("bad", "The validation loss after 2.10 M tokens is not a number.")
    only.lines.insert(0, only.lines[0].replace('"step": 4', '"step": 3').replace("null", "3.5"))
    only.write(place)
    last = "The last that was is of step 3."
    assert said(place)[0] == ("bad", f"The validation loss after 2.10 M tokens is not a number. {last}")


@pytest.mark.parametrize("missing", ["config.json", "environment.json", "records.jsonl"])
def test_a_broken_run_is_reported_as_far_as_it_goes(
    run: Path, missing: str, cli: Callable[..., Outcome]
) -> None:
    (run / missing).unlink()
    assert cli("report", "x").code == 0
    assert (run / "report.html").is_file()
    (run / missing).write_text("{nonsense\n")
    assert cli("report", "x").code == 0
    for how in ("--json", "--markdown", "--terminal"):
        assert cli("report", "x", how).code == 0


DEAD = (
    "The gradient has been exactly 0 since step 5 (20 updates): the model does not learn any more, its "
    "activations are dead or have overflowed. Start a new run with a lower learning rate: --optim.lr 0.0003."
)


def test_a_model_without_gradients_is_called_dead(place: Path) -> None:
    night = Night()
    night.event(0, "start")
    for step in range(1, 25):
        night.train(step)
        if step >= 5:
            night.lines[-1] = night.lines[-1].replace('"grad_norm": 0.3', '"grad_norm": 0.0')
    make_run(place, lecture(place), night)
    assert ("bad", DEAD) in said(place)
    night.train(25)
    night.write(place)
    assert not any("gradient has been" in text for _, text in said(place))


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_a_model_that_never_had_a_gradient_is_dead_however_young(place: Path, steps: int) -> None:
    night = Night()
    night.event(0, "start")
    for step in range(1, steps + 1):
        night.train(step)
        night.lines[-1] = night.lines[-1].replace('"grad_norm": 0.3', '"grad_norm": 0.0')
    make_run(place, lecture(place), night)
    assert any("exactly 0 since step 1" in text for _, text in said(place))


@pytest.mark.parametrize(
    ("lr", "wanted"), [(1e30, "0.0006"), (6e-4, "0.0003"), (1e-3, "0.0005"), (2e-3, "0.0006")]
)
def test_a_loss_far_above_guessing_has_diverged_and_the_remedy_is_a_usual_rate(
    place: Path, lr: float, wanted: str
) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    night.validate(1, 1e10)
    config = lecture(place)
    make_run(place, config, night)
    described = json.loads((place / "config.json").read_text())
    described["optim"]["lr"] = min(lr, LIMITS["lr"])
    (place / "config.json").write_text(json.dumps(described))
    assert (
        "bad",
        "A validation loss of 1e+10 is far above 10.8258, which guessing evenly among 50,304 tokens would "
        f"lose: the weights have diverged. Start a new run with a lower learning rate: --optim.lr {wanted}.",
    ) in said(place)


@pytest.mark.parametrize("loss", [10.9, 11.5, 3.0])
def test_a_loss_of_a_new_model_has_not_diverged(place: Path, loss: float) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1, loss)
    night.validate(1, loss)
    make_run(place, lecture(place), night)
    assert not any("diverged" in text for _, text in said(place))


def test_without_a_validation_the_training_loss_of_the_last_updates_counts(place: Path) -> None:
    """One spike is not a divergence."""
    night = Night()
    night.event(0, "start")
    for step in range(1, 30):
        night.train(step, 5e9 if step == 20 else 3.0)
    make_run(place, lecture(place), night)
    assert not any("diverged" in text for _, text in said(place))
    for step in range(30, 50):
        night.train(step, 5e9)
    night.write(place)
    assert any(text.startswith("A training loss of 5e+09 is far above 10.8258") for _, text in said(place))


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


@pytest.mark.parametrize("detail", [None, 5, {}, [], "x" * 100_000, "a\x1b[2J\nb"])
def test_what_an_event_says_is_a_short_line_and_never_none(place: Path, detail: object) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    night.event(1, "unusual_loss", detail=detail)
    make_run(place, lecture(place), night)
    [line] = [text for _, text in said(place) if text.startswith("Step 1: ")]
    assert "None" not in line
    assert len(line) < 600
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
