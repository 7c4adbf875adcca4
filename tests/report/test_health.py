"""The verdict on a model's health: overfitting, losses that are not finite, dead gradients, divergence."""

import json
from pathlib import Path

import pytest
from tests.report.made import Night, full_night, lecture, make_run, said

from overnight.checks import LIMITS


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
