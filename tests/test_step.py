"""The update, however it is computed, and the garbage collector while updates are made."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tests.conftest import Outcome

from overnight.config import ModelConfig, OptimConfig
from overnight.models.gpt2 import GPT
from overnight.optim import adamw
from overnight.optim import optimizer as make_optimizer
from overnight.step import frozen_garbage, train_step
from overnight.train import Session
from overnight.world import World


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_an_update_that_is_not_finite_does_not_happen(fused: bool, algorithm: str) -> None:
    """With the kernel that looks by itself, and with the one for which the host has to."""
    model = GPT(ModelConfig(1, 2, 16, 8, 20), 20).init_weights(1)
    config = OptimConfig(lr=1e-2, fused=fused, algorithm=algorithm, embedding_lr=1e-2, scalar_lr=1e-2)
    optimizer = make_optimizer(model, config, World(torch.device("cpu")))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ids = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = ids[:, :-1], ids[:, 1:]

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        loss, _ = train_step(model, optimizer, scaler, [batch], 1, 1e-2, 1.0, nullcontext)
        return loss.item(), {name: weight.clone() for name, weight in model.state_dict().items()}

    losses, weights = zip(*(step() for _ in range(3)), strict=True)
    assert losses[0] > losses[1] > losses[2]
    kept = copy.deepcopy(list(optimizer.state.values()))
    for spoiled in (model.ln_f.weight, model.h[0].mlp.c_fc.weight):
        spoil = spoiled.register_hook(lambda grad: grad * torch.nan)
        _, after = step()
        spoil.remove()
        assert all(torch.equal(after[name], weights[-1][name]) for name in after)
    for before, now in zip(kept, optimizer.state.values(), strict=True):
        assert all(torch.equal(before[name], now[name]) for name in before)
    assert step()[0] < losses[2]


def test_the_forms_of_adamw_agree() -> None:
    found = []
    for fused in (True, False):
        model = GPT(ModelConfig(1, 2, 16, 8, 20), 20).init_weights(1)
        optimizer = adamw(model, OptimConfig(fused=fused))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        ids = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            batches = [(ids[:, :-1], ids[:, 1:])]
            train_step(model, optimizer, scaler, batches, 1, 1e-2, 1.0, nullcontext)
        found.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)  # of 0.03 that weights moved


class Cycle:
    """An object that only the garbage collector can delete."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_collected_and_other_objects_are_frozen() -> None:
    garbage = weakref.ref(Cycle())
    before = gc.get_freeze_count()
    with frozen_garbage():
        assert garbage() is None
        assert gc.get_freeze_count() > before + 10_000
        garbage = weakref.ref(Cycle())
        gc.collect()
        assert garbage() is None
    assert gc.get_freeze_count() == 0


def test_objects_from_before_training_are_frozen_in_every_update(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.train.frozen_garbage", frozen_garbage)  # conftest.py replaces it
    update, frozen = Session.update, []

    def count(self: Session, step: int) -> str:
        frozen.append(gc.get_freeze_count())
        return update(self, step)

    monkeypatch.setattr(Session, "update", count)
    assert train(tmp_path / "x").code == 0
    assert len(frozen) == 4
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
