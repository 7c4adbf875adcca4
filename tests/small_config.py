"""A small config, with any of its fields changed."""

import dataclasses
from typing import Any

from overnight.config import Config, ModelConfig

SMALL = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)


def build(**changes: Any) -> Config:
    """A small config with some fields changed: build(**{"steps": 3, "model.n_head": 4})."""
    config = Config("data", "run", steps=10, batch_tokens=1024, model=SMALL)
    top = {name: value for name, value in changes.items() if "." not in name}
    for section in ("model", "optim", "loader", "train", "sample"):
        inside = {n.split(".")[1]: v for n, v in changes.items() if n.startswith(f"{section}.")}
        top[section] = dataclasses.replace(getattr(config, section), **inside)
    return dataclasses.replace(config, **top)
