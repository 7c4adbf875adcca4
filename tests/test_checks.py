"""Values of a config that are refused, each with its limit or a value that works."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_config import build

from overnight.checks import fields_of
from overnight.config import RAMP_START
from overnight.errors import UserError
from overnight.presets import PRESETS

NAN, INF = math.nan, math.inf
MODERN = {"model.architecture": "modern", "model.bias": False, "model.activation": "relu2"}


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as raised:
        build(**changes)
    return str(raised.value)


AT_LEAST = {
    "steps": 1, "batch_tokens": 1, "micro_batch": 1, "processes": 1, "val_tokens": 1, "keep": 1, "seed": 0,
    "eval_every": 0, "save_every": 0, "sample_every": 0, "max_minutes": 0, "model.n_layer": 1,
    "model.n_head": 0, "model.n_embd": 0, "model.block_size": 1, "model.vocab_size": 1, "optim.min_lr": 0,
    "optim.momentum_steps": 0, "optim.warmup_steps": 0, "optim.weight_decay": 0, "optim.grad_clip": 0,
    "optim.ramp_tokens": 0,
    "sample.count": 1, "sample.length": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "least"), AT_LEAST.items())
def test_too_small_a_number_is_refused_with_the_least(name: str, least: int) -> None:
    expected = f"{name.replace('_', '-')} is {least - 1}: give {least} or more."
    assert expected in refusal(**{name: least - 1}).split("\n")


FLOATS = [name for name, value in fields_of(PRESETS["gpt2-124m"]()) if isinstance(value, float)]


@pytest.mark.parametrize("name", [*FLOATS, "optim.betas"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    given_value = (0.9, value) if name == "optim.betas" else value
    assert f"{name.replace('_', '-')} is {given_value}: give a finite number." in refusal(
        **{name: given_value}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.n_head": 3}, "model.n-head 3 does not divide model.n-embd 16: give one of 1, 2, 4, 8, 16."),
        ({"model.dropout": 1.0}, "model.dropout is 1.0: give 0 or more, less than 1."),
        ({"model.dropout": -0.1}, "model.dropout is -0.1: give 0 or more, less than 1."),
        ({"optim.lr": 0.0}, "optim.lr is 0.0: give a number above 0."),
        ({"optim.lr": -1.0, "optim.min_lr": 0.0}, "optim.lr is -1.0: give a number above 0."),
        ({"optim.eps": 0.0}, "optim.eps is 0.0: give a number above 0."),
        ({"optim.betas": (0.9, 1.0)}, "optim.betas are 0.9 and 1.0: give two from 0 to less than 1."),
        ({"optim.betas": (-0.1, 0.9)}, "optim.betas are -0.1 and 0.9: give two from 0 to less than 1."),
        ({"optim.decay": 0.0}, "optim.decay is 0.0: give more than 0, at most 1."),
        ({"optim.momentum": 1.0}, "optim.momentum is 1.0: give 0 or more, less than 1."),
        ({"optim.embedding_lr": 0.0}, "optim.embedding-lr is 0.0: give a number above 0."),
        (
            {"optim.min_lr": 1.0, "optim.schedule": "trapezoid"},
            "optim.min-lr 1.0 is above optim.lr 0.0006: give at most that.",
        ),
        (
            {"model.activation": "relu2"},
            "model.activation relu2 is for model.architecture modern: give gelu_tanh or gelu.",
        ),
        (
            {"model.architecture": "modern"},
            "model.architecture modern has no biases, no dropout, and ReLU squared: give --model.no-bias "
            "--model.dropout 0 --model.activation relu2.",
        ),
        (
            MODERN | {"model.n_embd": 12, "model.n_head": 4},
            "heads of 3 cannot be turned in pairs: give another model.n-head.",
        ),
        (
            {"model.n_embd": 0, "model.n_layer": 4, "model.n_head": 3},
            "model.n-head 3 does not divide model.n-embd 256: give one of 1, 2, 4, 8, 16, 32, 64.",
        ),
        (
            {"model.n_embd": 320, "model.n_head": 0},
            "model.n-head 0 is heads of 128, and model.n-embd 320 no multiple: give a number.",
        ),
        (
            {"optim.algorithm": "muon"},
            "optim.embedding-lr 0.7 is for the modern network's embedding, 50 times as large as "
            "GPT-2's: give about 6e-4, and optim.scalar-lr too.",
        ),
        ({"optim.min_lr": 1.0}, "optim.min-lr 1.0 is above optim.lr 0.0006: give at most that."),
        (
            {"batch_tokens": 1000},
            "batch-tokens 1000 is not a multiple of context 16 x processes 1 = 16: give 992 or 1008.",
        ),
        (
            {"batch_tokens": 1000, "micro_batch": 2, "processes": 3},
            "batch-tokens 1000 is not a multiple of micro-batch 2 x context 16 x processes 3 = 96: "
            "give 960 or 1056.",
        ),
        (
            {"batch_tokens": 8},
            "batch-tokens 8 is not a multiple of context 16 x processes 1 = 16: give 16.",
        ),
        (
            {"optim.ramp_tokens": 10**6, "batch_tokens": 3 * RAMP_START // 2},
            "optim.ramp-tokens starts from 32768 tokens a step: they must be a multiple of "
            "context 16 x processes 1 = 16 and divide batch-tokens 49152.",
        ),
        (
            {"optim.ramp_tokens": 10**6, "batch_tokens": 3 * 2**16, "processes": 3},
            "optim.ramp-tokens starts from 32768 tokens a step: they must be a multiple of "
            "context 16 x processes 3 = 48 and divide batch-tokens 196608.",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_word_by_word(changes: dict[str, Any], words: str) -> None:
    assert refusal(**changes) == words


@pytest.mark.parametrize(
    "changes",
    [
        {"model.n_head": 16}, {"model.dropout": 0.0}, {"model.dropout": 0.99}, {"optim.betas": (0.0, 0.0)},
        {"optim.min_lr": 1.0, "optim.schedule": "constant"}, {"optim.min_lr": 6e-4}, {"optim.grad_clip": 0.0},
        {"eval_every": 0, "save_every": 0, "sample_every": 0}, {"micro_batch": 64}, {"processes": 64},
        {"seed": 0}, {"batch_tokens": 16}, {"model.n_embd": 1, "model.n_head": 1},
        {"optim.warmup_steps": 10**6}, MODERN, {"model.n_embd": 0, "model.n_head": 0}, {"optim.decay": 1.0},
        {"optim.momentum": 0.0, "optim.momentum_steps": 0}, MODERN | {"optim.algorithm": "muon"},
        {"optim.algorithm": "muon", "optim.embedding_lr": 6e-4},
    ],
    ids=str,
)  # fmt: skip
def test_the_borders_are_allowed(changes: dict[str, Any]) -> None:
    build(**changes)


@given(st.integers(1, 10_000), st.integers(1, 40), st.integers(1, 8))
def test_the_nearest_batches_that_fit_are_named(batch_tokens: int, micro_batch: int, processes: int) -> None:
    unit = micro_batch * 16 * processes
    multiples = range(0, 20_000, unit)
    changes = {"batch_tokens": batch_tokens, "micro_batch": micro_batch, "processes": processes}
    if batch_tokens in multiples:
        build(**changes)
        return
    below = max(m for m in multiples if m < batch_tokens)
    above = below + unit
    expected = f"give {below} or {above}." if below else f"give {above}."
    assert refusal(**changes).endswith(expected)


def test_all_problems_come_at_once_in_three_lines() -> None:
    wrong = {name: least - 1 for name, least in AT_LEAST.items()}
    wrong |= {"optim.betas": (2.0, 2.0), "model.dropout": 2.0, "optim.lr": NAN, "optim.eps": -1.0}
    message = refusal(**wrong)
    assert len(message.split("\n")) <= 3
    for name in wrong:
        assert name.replace("_", "-") in message


RATES = {"lr": "0.0006", "min_lr": "6e-05", "embedding_lr": "0.7", "head_lr": "0.004", "scalar_lr": "0.015"}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [101.0, 1e30, 1e38, 1.7e308])
def test_a_learning_rate_beyond_all_reason_is_refused_with_a_usual_one(name: str, value: float) -> None:
    wanted = f"optim.{name.replace('_', '-')} is {value}: give at most 100; {RATES[name]} is usual."
    assert wanted in refusal(**{f"optim.{name}": value}).split("\n")


def test_the_usual_rate_is_that_of_the_algorithm() -> None:
    muon = MODERN | {"optim.algorithm": "muon", "optim.lr": 1e38}
    assert refusal(**muon) == "optim.lr is 1e+38: give at most 100; 0.025 is usual."


WHOLE_NUMBERS = [
    name
    for name, value in fields_of(PRESETS["gpt2-124m"]())
    if isinstance(value, int) and not isinstance(value, bool)
]


@pytest.mark.parametrize("name", [*WHOLE_NUMBERS, "micro_batch", "hellaswag_every", "model.vocab_size"])
@pytest.mark.parametrize("value", [2**63, 10**30, 10**400, 10**4000], ids=["2**63", "30", "400", "4000"])
def test_whole_numbers_that_overflow_are_refused(name: str, value: int) -> None:
    message = refusal(**{name: value})
    assert re.search(rf"{re.escape(name.replace('_', '-'))} is .*: give at most [\d,]+\.", message)
    assert len(message) < 7000


@pytest.mark.parametrize(
    ("name", "value"), [("optim.eps", 1e39), ("optim.weight_decay", 1e39), ("sample.count", 10**6)]
)
def test_other_numbers_that_torch_refuses_are_refused_before_it(name: str, value: float) -> None:
    assert f"{name.replace('_', '-')} is {value}: give at most " in refusal(**{name: value})
