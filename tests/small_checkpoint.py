"""A tiny model after some updates, and its checkpoint in an empty run's folder."""

from pathlib import Path

import pytest
import torch

from overnight import checkpoint
from overnight.config import ModelConfig, OptimConfig
from overnight.models.gpt2 import GPT
from overnight.optim import adamw
from overnight.saved import OPTIMIZER, WEIGHTS
from overnight.state import State

TINY = ModelConfig(1, 2, 8, 4, 10)


def state(step: int, val_loss: float | None = None) -> State:
    return State(step, 64 * step, 1337, "fingerprint", 100, val_loss, {})


def publish(run: Path, model: GPT, optimizer: torch.optim.Optimizer, state: State) -> Path:
    tensors: dict[str, dict[str, torch.Tensor]] = {WEIGHTS: {}, OPTIMIZER: {}}
    for file, name, tensor in checkpoint.tensors_of(model, optimizer):
        tensors[file][name] = tensor.detach()
    return checkpoint.publish(run, tensors[WEIGHTS], tensors[OPTIMIZER], state)


def made(updates: int, seed: int = 1) -> tuple[GPT, torch.optim.AdamW]:
    """A model after some updates, and its optimizer."""
    model = GPT(TINY, 10).init_weights(seed)
    optimizer = adamw(model, OptimConfig(warmup_steps=0))
    for number in range(updates):
        update(model, optimizer, number)
    return model, optimizer


def update(model: GPT, optimizer: torch.optim.Optimizer, number: int) -> None:
    ids = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(number))
    model(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty run's folder."""
    return tmp_path
