"""Loss spikes, and overflows of fp16 that only adjust its scale."""

from pathlib import Path

import numpy as np
import pytest
from tests.short_run import options, poison
from tests.violence import events

from overnight import cli
from overnight.watch import HALVINGS, LEAST, Watch

__all__ = ["poison"]


def test_fp16_looking_for_its_scale_is_no_bad_night() -> None:
    """Gradients that overflow with a finite loss halve the scale, but not more than 16 times in a row."""
    watch = Watch(0, [], scaled=True)
    for _ in range(HALVINGS):
        assert watch.nonfinite(2.0, float("inf"))
    assert watch.bad_steps == 0
    assert watch.nonfinite(2.0, float("inf"))
    assert watch.bad_steps == 1
    assert not watch.nonfinite(2.0, 1.0)
    assert watch.bad_steps == 0
    assert watch.nonfinite(float("nan"), float("nan"))
    assert watch.bad_steps == 1, "a loss that is no number has nothing to do with the scale"


def test_spikes_are_told_from_noise_and_from_the_first_steps() -> None:
    draw = np.random.default_rng(1)
    watch = Watch(0, [], scaled=False)
    noise = [3.0 + 0.1 * float(x) for x in draw.standard_normal(400)]
    assert not any(watch.spike(loss) for loss in noise)
    assert watch.spike(4.2) > 6
    assert not Watch(0, noise[: LEAST - 1], scaled=False).spike(9.0), "too little is known yet"
    falling = Watch(0, [], scaled=False)
    assert not any(falling.spike(10.8 * 0.97**n) for n in range(100)), "learning is no spike"


def test_a_spike_is_recorded(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison
) -> None:
    poison(45, value=50.0)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 48)) == 0
    (spike,) = events(run, "spike")
    assert spike["step"] == 45
    assert spike["detail"]["sigmas"] > 6
