"""A config from plain data, as config.json holds it: every field's name and type checked."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from overnight.config import Config
from overnight.errors import UserError
from overnight.visible import as_json

# Fields that config.json of older runs does not have.
LATER = {"parallel", "max_restarts", "profile", "track", "train"}
LATER |= {"model.residual", "model.logits", "optim.fused"}
LATER |= {"model.architecture", "optim.algorithm", "optim.decay", "optim.momentum", "optim.momentum_steps"}
LATER |= {"optim.embedding_lr", "optim.head_lr", "optim.scalar_lr"}
LATER |= {"train.cast", "train.attention_kernel", "train.products"}


def from_dict(described: dict[str, Any], where: str) -> Config:
    """The config that `dataclasses.asdict` described; `where` names the file in errors."""
    try:
        return _build(Config, described)
    except (TypeError, KeyError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"the config {where} is damaged or of another version: {error}") from None


def _build(kind: type, described: Any, prefix: str = "") -> Any:
    """A dataclass from plain data, each value checked against the field's type."""
    hints = get_type_hints(kind)
    needed = {name for name in hints if prefix + name not in LATER}
    if not isinstance(described, dict) or not needed <= set(described) <= set(hints):
        raise TypeError(f"{kind.__name__} does not have the fields {', '.join(hints)}")
    values = {}
    for name in set(hints) & set(described):
        hint, value = hints[name], described[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{name}.")  # type: ignore[arg-type]
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
            if not _fits(values[name], hint):
                raise TypeError(f"{name} is {as_json(value)}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(get_args(hint))
            and all(map(_fits, value, get_args(hint)))
        )
    if get_args(hint):  # a union
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)
    return type(value) is hint
