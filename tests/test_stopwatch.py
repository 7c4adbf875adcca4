"""Measurements in a process of their own."""

from dataclasses import replace

import pytest
import torch

from overnight import ladder, stopwatch
from overnight.config import Config, ModelConfig
from overnight.errors import Failure

PLACE = ladder.Place(torch.device("cpu"), "bf16")
FIRST = ladder.first_config(ModelConfig(1, 2, 16, 16, 50), 2, PLACE)


def test_a_config_is_measured() -> None:
    found = stopwatch.measure(FIRST, 50, steps=7, seconds=60)
    assert len(found.step_ms) == 7
    assert min(found.step_ms) <= found.ms <= max(found.step_ms)
    assert 3 < found.loss < 4.2  # ln 50 = 3.9
    assert found.peak_memory is None or 50e6 < found.peak_memory < 5e9


def test_slow_steps_are_few_but_never_too_few() -> None:
    assert len(stopwatch.measure(FIRST, 50, steps=1000, seconds=1e-9).step_ms) == stopwatch.LEAST


def test_every_rung_on_a_cpu_has_the_same_loss() -> None:
    """After as many updates, from the same weights and tokens: a faster computation of the same thing."""
    losses, config = [], FIRST
    for rung in ladder.RUNGS:
        changed = rung.change(config, PLACE)
        if changed.precision == "fp32" and changed.compile == "off":
            config = changed
            losses.append(stopwatch.measure(config, 50, steps=1, seconds=0).loss)
    assert config.model.vocab_size == 64
    assert len(losses) > 5
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(FIRST, device="cuda"), "there is no cuda device here"),
        (replace(FIRST, model=replace(FIRST.model, n_embd=2**24, n_head=1)), "allocate"),
    ],
)
def test_what_does_not_work_says_why_in_a_line(config: Config, reason: str) -> None:
    if config.device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Failure, match=reason) as refused:
        stopwatch.measure(config, 50, steps=1, seconds=0)
    assert len(str(refused.value).splitlines()) == 1


def test_a_compiler_that_is_missing_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(Failure, match=r"torch\.compile does not work here"):
        stopwatch.measure(replace(FIRST, compile="on"), 50, steps=1, seconds=0)
