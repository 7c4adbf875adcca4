"""What may be wrong with the numbers of a config or of a verb's options, each with its remedy."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

RAMP_START = 32_768  # tokens a step at the start of a batch ramp (GPT-3's paper, table 2.1 and appendix B)
# Above all that is used, below what makes torch overflow or a loop never end. Numbers of all other options:
# below which a float holds every whole number.
LARGEST = 2**53
LIMITS: dict[str, float] = {
    "lr": 100.0, "min_lr": 100.0, "embedding_lr": 100.0, "head_lr": 100.0, "scalar_lr": 100.0,
    "weight_decay": 1000.0, "eps": 1.0, "seed": 2**63 - 1,
    "n_layer": 10_000, "n_head": 2**32, "n_embd": 2**32, "block_size": 2**32, "vocab_size": 2**32,
    "batch_tokens": 2**32, "count": 10_000, "samples": 10_000, "length": 2**32, "temperature": 1e9,
}  # fmt: skip


def at_least(config: Any, prefix: str, least: int, *names: str) -> Iterator[str]:
    """A problem for each named field that holds a number below `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and value < least:
            yield f"{prefix}{name.replace('_', '-')} is {value}: give {least} or more."


def above_limits(config: Any, usual: Mapping[str, float] = MappingProxyType({})) -> Iterator[str]:
    """A problem for each field, at any depth, with a number above its limit. usual: ones to name then."""
    for name, value in fields_of(config):
        most = LIMITS.get(name.rpartition(".")[2], LARGEST)
        if isinstance(value, int | float) and most < value < math.inf:
            limit = f"{most:,}" if isinstance(most, int) else f"{most:,g}"
            hint = f"; {usual[name]:g} is usual" if name in usual else ""
            yield f"{name.replace('_', '-')} is {shown(value)}: give at most {limit}{hint}."


def shown(value: float) -> str:
    """A number as it was given; of a whole one with very many digits, how many those are."""
    digits = str(value)
    return digits if len(digits) <= 40 else f"a number of {len(digits)} digits"


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


def batch_problems(config: Any) -> Iterator[str]:
    """Where a step's tokens are not a multiple of what all ranks compute at once."""
    rows = config.micro_batch if isinstance(config.micro_batch, int) else 1
    unit = max(1, rows) * config.model.block_size * config.processes
    parts = "" if config.micro_batch == "auto" else f"micro-batch {rows} x "
    parts += f"context {config.model.block_size} x processes {config.processes} = {unit}"
    if config.batch_tokens % unit:
        below, above = config.batch_tokens // unit * unit, -(-config.batch_tokens // unit) * unit
        fits = f"{below} or {above}" if below else f"{above}"
        yield f"batch-tokens {config.batch_tokens} is not a multiple of {parts}: give {fits}."
    elif config.optim.ramp_tokens and (RAMP_START % unit or config.batch_tokens % RAMP_START):
        yield (
            f"optim.ramp-tokens starts from {RAMP_START} tokens a step: they must be a multiple of "
            f"{parts} and divide batch-tokens {config.batch_tokens}."
        )
