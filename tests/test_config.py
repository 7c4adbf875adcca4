"""A config is right or refused, with all that is wrong with it; it survives JSON; every field is read."""

import ast
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import overnight
from overnight.checks import fields_of
from overnight.config import RAMP_START, Config, ModelConfig
from overnight.described import LATER, from_dict
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.verbs.doctor import Doctor
from overnight.verbs.eval import Eval
from overnight.verbs.export import Export
from overnight.verbs.inspect import Inspect
from overnight.verbs.plan import Plan
from overnight.verbs.prepare import Prepare
from overnight.verbs.sample import Sample

SOURCES = Path(overnight.__file__).parent
NAN, INF = math.nan, math.inf
MODERN = {"model.architecture": "modern", "model.bias": False, "model.activation": "relu2"}
SMALL = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)


def build(**changes: Any) -> Config:
    """A small config with some fields changed: build(**{"steps": 3, "model.n_head": 4})."""
    config = Config("data", "run", steps=10, batch_tokens=1024, model=SMALL)
    top = {name: value for name, value in changes.items() if "." not in name}
    for section in ("model", "optim", "loader", "train", "sample"):
        inside = {n.split(".")[1]: v for n, v in changes.items() if n.startswith(f"{section}.")}
        top[section] = dataclasses.replace(getattr(config, section), **inside)
    return dataclasses.replace(config, **top)


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


@pytest.mark.parametrize(
    ("depth", "width", "heads"), [(1, 128, 1), (2, 128, 1), (3, 256, 2), (12, 768, 6), (20, 1280, 10)]
)
def test_depth_is_a_models_one_dial(depth: int, width: int, heads: int) -> None:
    sized = ModelConfig(depth, n_head=0, n_embd=0).sized()
    assert (sized.n_layer, sized.n_embd, sized.n_head) == (depth, width, heads)
    assert sized.sized() == sized
    assert ModelConfig(10**320 + 1, n_embd=0).sized().n_embd == 64 * (10**320 + 2), "exact, whatever the size"
    assert ModelConfig(depth, n_head=0, n_embd=64).sized().n_head == 1
    assert ModelConfig(depth, n_head=3, n_embd=96).sized() == ModelConfig(depth, n_head=3, n_embd=96)


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


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_config_survives_json(preset: Any) -> None:
    config = preset()
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config))), "here") == config


def test_a_config_that_is_all_there_is_read_back() -> None:
    config = build(micro_batch=4, max_minutes=1.5, **{"model.vocab_size": 50_304, "optim.betas": (0.8, 0.9)})
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config))), "here") == config
    assert (
        from_dict(dataclasses.asdict(config) | {"max_minutes": 2}, "here").max_minutes == 2
    )  # JSON may drop the .0


def leaves(described: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    for name, value in described.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from leaves(value, *above, name)


WHOLE = dataclasses.asdict(build())
PATHS = [".".join(path) for path in leaves(WHOLE)]


def damaged(path: str, act: Any) -> dict[str, Any]:
    described = json.loads(json.dumps(WHOLE))
    *above, name = path.split(".")
    inner = described
    for step in above:
        inner = inner[step]
    act(inner, name)
    return described


def refused_as_damaged(described: Any) -> None:
    with pytest.raises(
        UserError, match=r"the config somewhere/config\.json is damaged or of another version: "
    ):
        from_dict(described, "somewhere/config.json")


@pytest.mark.parametrize("path", sorted(LATER))
def test_runs_from_before_there_was_a_field_go_on(path: str) -> None:
    config = from_dict(damaged(path, lambda inner, name: inner.pop(name)), "config.json")
    assert attrgetter(path)(config) == attrgetter(path)(build())


@pytest.mark.parametrize("path", [path for path in PATHS if path not in LATER])
def test_a_missing_field_is_refused(path: str) -> None:
    refused_as_damaged(damaged(path, lambda inner, name: inner.pop(name)))


@pytest.mark.parametrize("path", ["colour", "model.colour", "optim.colour", "loader.colour", "sample.colour"])
def test_a_surplus_field_is_refused(path: str) -> None:
    refused_as_damaged(damaged(path, lambda inner, name: inner.update({name: 1})))


@pytest.mark.parametrize("path", PATHS)
def test_a_value_of_no_fields_type_is_refused(path: str) -> None:
    for alien in (None, {}, [], [1, 2, 3], ["a", "b"], {"colour": 1}):
        refused_as_damaged(damaged(path, lambda inner, name, alien=alien: inner.update({name: alien})))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data", 1), ("steps", "10"), ("steps", 10.0), ("steps", True), ("steps", 0), ("seed", 1.5),
        ("seed", False), ("micro_batch", "most"), ("micro_batch", 1.0), ("micro_batch", True),
        ("device", "tpu"), ("device", 0), ("precision", "fp8"), ("deterministic", 1),
        ("deterministic", "yes"), ("max_minutes", True), ("max_minutes", "1"), ("max_minutes", NAN),
        ("model", "gpt2"), ("model.vocab_size", "many"), ("model.n_head", 3), ("model.dropout", "0.1"),
        ("model.activation", "relu"), ("optim.betas", [0.9]), ("optim.betas", [0.9, "x"]),
        ("optim.betas", 0.9), ("optim.betas", [0.9, 0.9, 0.9]), ("optim.lr", INF), ("loader.order", "random"),
        ("sample.prompt", 1), ("init_from", False),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(path: str, value: Any) -> None:
    refused_as_damaged(damaged(path, lambda inner, name: inner.update({name: value})))


@pytest.mark.parametrize("described", [None, [], "config", 3, {}], ids=str)
def test_what_is_no_config_at_all_is_refused(described: Any) -> None:
    refused_as_damaged(described)


def test_without_a_ramp_every_step_is_as_large() -> None:
    config = build(batch_tokens=1024)
    assert {config.sequences(step) for step in (0, 1, 9, 10**6)} == {64}


def test_a_ramp_by_hand() -> None:
    """Four levels share the 12 units of 32,768 tokens: 3 steps of 1, 2 (1.5, rounded up) of 2, 1 of 3."""
    config = build(batch_tokens=4 * RAMP_START, **{"optim.ramp_tokens": 12 * RAMP_START})
    unit = RAMP_START // 16
    assert [config.sequences(step) / unit for step in range(8)] == [1, 1, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("levels", [1, 2, 16, 32])
@pytest.mark.parametrize("ramp_tokens", [1, 10**6, 4 * 10**8, 4 * 10**9])
def test_a_ramp_grows_from_its_start_to_the_batch(levels: int, ramp_tokens: int) -> None:
    batch_tokens = levels * RAMP_START
    config = build(batch_tokens=batch_tokens, **{"model.block_size": 1024, "optim.ramp_tokens": ramp_tokens})
    sizes, step = [], 0
    while not sizes or sizes[-1] < batch_tokens:
        sizes.append(config.sequences(step) * 1024)
        step += 1
    assert sizes[0] == RAMP_START
    assert sizes == sorted(sizes)
    assert {config.sequences(later) * 1024 for later in (step, step + 1, 10 * step)} == {batch_tokens}
    # Level k ends with the first step at or behind its share: at most k units late, and the last is not run.
    before = sum(sizes[:-1])
    exact = ramp_tokens * (levels - 1) / levels
    assert exact <= before <= exact + RAMP_START * levels * (levels - 1) / 2


def fields_read(tree: ast.AST, owners: set[str]) -> set[str]:
    """Names of attributes that code takes from a variable or attribute named in `owners`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name in owners:
                found.add(node.attr)
    return found


def without(tree: ast.Module, *functions: str) -> ast.Module:
    """Validation reads every field; that alone makes no option useful."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if getattr(part, "name", "") not in functions]
    return tree


def test_every_field_of_the_config_is_read() -> None:
    owners = {"config", "wanted", "model", "optim", "loader", "sample", "train"}
    read: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "config.py":
            read |= fields_read(without(tree, "problems"), owners | {"self"})
        elif path.name not in ("presets.py", "checks.py"):
            read |= fields_read(tree, owners)
    leaves_of_config = {name.split(".")[-1] for name, _ in fields_of(build())}
    assert (leaves_of_config | {"colour"}) - read == {"colour"}


VERBS = [Prepare, Eval, Sample, Inspect, Export, Plan, Doctor]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_option_of_a_verb_is_read(verb: Any) -> None:
    source = SOURCES / "verbs" / f"{verb.__name__.lower()}.py"
    read = fields_read(ast.parse(source.read_text(encoding="utf-8")), {"wanted", "config"})
    inherited = {field.name for field in dataclasses.fields(Config)} if issubclass(verb, Config) else set()
    assert {field.name for field in dataclasses.fields(verb)} - inherited - read == set()
