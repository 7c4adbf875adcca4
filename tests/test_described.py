"""A config is read back from JSON, or refused if anything in it is missing, unknown or wrong."""

import dataclasses
import json
import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import pytest
from tests.small_config import build

from overnight.described import LATER, from_dict
from overnight.errors import UserError
from overnight.presets import PRESETS

NAN, INF = math.nan, math.inf


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
