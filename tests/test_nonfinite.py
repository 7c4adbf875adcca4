"""Updates whose loss or gradients are not finite are skipped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.short_run import options, poison
from tests.violence import assert_same_end, events, measured

from overnight import cli
from overnight.saved import WEIGHTS, folder, list_steps
from overnight.world import World

__all__ = ["poison"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_does_not_happen(
    value: float, poison, data_folder: Path, tmp_path: Path
) -> None:
    """Neither weights nor moments nor AdamW's count of steps change; the run goes on."""
    poison(6, value=value)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--save-every", 1, "--keep", 20)) == 0
    (event,) = events(run, "nonfinite")
    assert (event["step"], event["detail"]["in_a_row"], event["detail"]["loss"]) == (6, 1, None)
    train_records = [r for r in measured(run) if r["kind"] == "train"]
    assert [r["step"] for r in train_records if r["loss"] is None] == [6]
    # No checkpoint is made while updates do not happen: that of step 6 comes a step late.
    assert list_steps(run) == [1, 2, 3, 4, 5, *range(7, 17)]
    counts = {
        step: load_file(folder(run, step) / "optimizer.safetensors")["wte.weight.step"] for step in (5, 7)
    }
    assert counts == {5: 5.0, 7: 6.0}
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder(run, 16) / WEIGHTS).values())


def test_the_step_after_a_bad_one_starts_from_the_weights_before_it(
    poison, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the bad step, its checkpoint is that of the step before but for what is counted."""
    poison(6)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 5, "--optim.schedule", "constant")) == 0
    assert cli.run(options(data_folder, run, "--steps", 6, "--optim.schedule", "constant", "--keep", 9)) == 0
    for name in (WEIGHTS, "optimizer.safetensors"):
        assert (folder(run, 5) / name).read_bytes() == (folder(run, 6) / name).read_bytes()
    assert json.loads((folder(run, 6) / "state.json").read_text())["bad_steps"] == 1
    assert (
        "step 6: loss nan, gradient norm nan: this update did not happen (1 in a row)."
        in capsys.readouterr().out
    )


def test_numbers_read_a_step_late_are_the_same(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(options(data_folder, tmp_path / "now")) == 0
    monkeypatch.setattr(World, "lag", 1)
    assert cli.run(options(data_folder, tmp_path / "late")) == 0
    assert_same_end(tmp_path / "late", tmp_path / "now")


def test_fp16_halves_its_scale_where_an_update_did_not_happen(
    poison, data_folder: Path, tmp_path: Path
) -> None:
    poison(6)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--precision", "fp16", "--save-every", 1, "--keep", 20)) == 0
    scales = [json.loads((folder(run, n) / "state.json").read_text())["scaler"]["scale"] for n in (5, 7)]
    assert scales == [65_536.0, 32_768.0]
