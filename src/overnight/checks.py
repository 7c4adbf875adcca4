"""What may be wrong with the numbers of a config or of a verb's options, each with its remedy."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any


def at_least(config: Any, prefix: str, least: int, *names: str) -> Iterator[str]:
    """A problem for each named field that holds a number below `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and value < least:
            yield f"{prefix}{name.replace('_', '-')} is {value}: give {least} or more."


def at_most(config: Any, prefix: str, most: float, *names: str) -> Iterator[str]:
    """A problem for each named field that holds a number above `most`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and value > most:
            yield f"{prefix}{name.replace('_', '-')} is {value}: give {most:,} or less."


def seed_problems(seed: int) -> Iterator[str]:
    if seed >= 2**63:
        yield f"seed is {seed}: give less than 2**63."


def not_finite(config: Any) -> Iterator[str]:
    """A problem for each field, at any depth, that is infinite or not a number."""
    for name, value in fields_of(config):
        if any(
            isinstance(v, float) and not math.isfinite(v)
            for v in (value if type(value) is tuple else (value,))
        ):
            yield f"{name.replace('_', '-')} is {value}: give a finite number."


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('model.n_head', 12) and so on: every leaf of a config, in the order of the help."""
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", value
