"""The learning rate of each step, and which parameters decay."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overnight.config import ModelConfig, OptimConfig
from overnight.models.gpt2 import GPT
from overnight.optim import adamw, learning_rate, momentum, parameter_groups
from overnight.presets import PRESETS

CPU = torch.device("cpu")
COSINE = OptimConfig(lr=1.0, min_lr=0.2, warmup_steps=4)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0),  # the warm-up's last step has all of lr
        (4, 1.0), (6, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4), (8, 0.6), (12, 0.2), (13, 0.2), (1000, 0.2),
    ],
)  # fmt: skip
def test_by_hand(step: int, expected: float) -> None:
    """12 steps, 4 of them warm-up: step 8 is the middle of the cosine, 12 the one behind the last."""
    assert learning_rate(step, 12, COSINE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (3, 1.0), (4, 1.0), (11, 1.0), (10**6, 1.0)])
def test_a_constant_schedule_stays_level_behind_its_warm_up(step: int, expected: float) -> None:
    assert learning_rate(step, 12, dataclasses.replace(COSINE, schedule="constant")) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 6: 0.8, 8: 0.6, 12: 0.2, 99: 0.2}),
        # Half of 12 steps go down: level until 6 is done, then a sixth less at a time.
        ("trapezoid", {0: 0.25, 3: 1.0, 4: 1.0, 6: 1.0, 8: 0.2 + 0.8 * 4 / 6, 12: 0.2, 99: 0.2}),
    ],
)
def test_straight_lines_by_hand(schedule: str, expected: dict[int, float]) -> None:
    config = dataclasses.replace(COSINE, schedule=schedule, decay=0.5)
    for step, rate in expected.items():
        assert learning_rate(step, 12, config) == pytest.approx(rate, rel=1e-12), step


def test_the_speedruns_schedule() -> None:
    """No warm-up, level for 30% of 3,250 steps, a line to 0 over the rest."""
    config, steps = PRESETS["modern-124m"]().optim, 3250
    assert [learning_rate(step, steps, config) for step in (0, 500, 975)] == [0.025] * 3
    assert learning_rate(975 + 2275 // 5, steps, config) == pytest.approx(0.025 * 0.8)
    assert learning_rate(3249, steps, config) == pytest.approx(0.025 / 2275)
    assert learning_rate(3250, steps, config) == 0


def test_a_trapezoid_has_no_jump_where_its_warm_up_is_long() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=50, schedule="trapezoid", decay=0.7)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert max(abs(b - a) for a, b in pairwise(rates)) < 0.021
    assert max(rates) == pytest.approx(0.84, abs=0.02), "where the two lines meet: 1/50 up, 1/70 down"


def test_momentum_rises_in_a_line() -> None:
    config = OptimConfig(momentum=0.95, momentum_steps=10)
    assert [momentum(step, config) for step in (0, 5, 10, 500)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert momentum(0, dataclasses.replace(config, momentum_steps=0)) == 0.95
    assert momentum(0, dataclasses.replace(config, momentum=0.5)) == 0.5, "it never begins above its end"


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (1, 5), (3, 3), (4, 5)])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "trapezoid", "constant"])
def test_runs_shorter_than_their_warm_up_have_a_learning_rate(steps: int, warmup: int, schedule: str) -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=warmup, schedule=schedule)
    assert all(0 < learning_rate(step, steps, config) <= 1 for step in range(steps))


def lectures(it: int, max_steps: int, max_lr: float, min_lr: float, warmup_steps: int) -> float:
    """get_lr of build-nanogpt's train_gpt2.py."""
    if it < warmup_steps:
        return max_lr * (it + 1) / warmup_steps
    if it > max_steps:
        return min_lr
    decay_ratio = (it - warmup_steps) / (max_steps - warmup_steps)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (max_lr - min_lr)


@given(st.integers(0, 50), st.integers(1, 200), st.floats(1e-6, 1), st.floats(0, 1))
def test_the_schedule_is_the_lectures_and_monotone(
    warmup: int, decay_steps: int, lr: float, share: float
) -> None:
    steps, config = warmup + decay_steps, OptimConfig(lr=lr, min_lr=lr * share, warmup_steps=warmup)
    rates = [learning_rate(step, steps, config) for step in range(steps + 3)]
    expected = [lectures(step, steps, lr, lr * share, warmup) for step in range(steps + 3)]
    assert rates == pytest.approx(expected, rel=1e-9)
    rounding = 1 + 1e-12
    assert all(a <= b * rounding for a, b in pairwise(rates[:warmup]))
    assert all(b <= a * rounding for a, b in pairwise(rates[warmup:]))
    assert min(rates) >= 0


@pytest.mark.parametrize("bias", [True, False])
def test_exactly_the_tensors_of_two_or_more_dimensions_decay(bias: bool) -> None:
    model = GPT(ModelConfig(2, 2, 16, 8, 11, bias=bias), 11)
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = ("wte.weight", "wpe.weight", "c_attn.weight", "c_proj.weight", "c_fc.weight")
    expected = {name for name in names.values() if name.endswith(matrices)}
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert {names[id(parameter)] for parameter in spared["params"]} == set(names.values()) - expected
    assert len(decayed["params"]) == 2 + 2 * 4  # the tied head is there once


def test_decay_by_hand() -> None:
    """Without a gradient a matrix shrinks by lr x decay = 0.1 x 0.5, a bias not at all."""
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = adamw(layer, OptimConfig(lr=0.1, min_lr=0.0, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.data, torch.full((2, 2), 0.95))
    torch.testing.assert_close(layer.bias.data, torch.ones(2))


def test_the_config_reaches_adamw() -> None:
    config = OptimConfig(lr=0.3, min_lr=0.0, betas=(0.7, 0.8), eps=1e-3, weight_decay=0.2)
    for group, decay in zip(adamw(nn.Linear(2, 2), config).param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
            0.3,
            (0.7, 0.8),
            1e-3,
            decay,
        )
