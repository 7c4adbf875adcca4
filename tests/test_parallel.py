"""Weights cast once a step, against autocast, which casts them in every product."""

import contextlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from overnight import parallel
from overnight.config import Config, ModelConfig, OptimConfig, TrainConfig
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.models.gpt2 import GPT
from overnight.models.networks import Network, build
from overnight.parallel import CastOnce
from overnight.step import Engine
from overnight.world import World, use_precision

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64)
MODERN = replace(MODEL, architecture="modern", bias=False, activation="relu2")
CPU = World(torch.device("cpu"))


def config_for(precision: str, cast: str, model: ModelConfig = MODEL) -> Config:
    """Two micro-batches of three windows a step."""
    return Config(
        "d", "r", 5, 96, micro_batch=3, precision=precision, compile="off", model=model,
        optim=OptimConfig(lr=1e-2, warmup_steps=0), train=TrainConfig(cast=cast),
    )  # fmt: skip


def trained(
    data: Path,
    precision: str,
    cast: str,
    watch: AbstractContextManager | None = None,
    sizes: ModelConfig = MODEL,
) -> tuple[Network, nn.Module]:
    config, model = config_for(precision, cast, sizes), build(sizes, 60).init_weights(1)
    batches = Batches(Data(data).split("train"), 16, config.sequences, seed=1)
    with contextlib.closing(Engine(model, config, batches, CPU, print)) as engine, watch or nullcontext():
        for step in (1, 2, 3):
            engine.update(step)
    return model, engine.module


@pytest.mark.parametrize("architecture", [MODEL, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_same_weights_come_out_bit_for_bit(
    precision: str, architecture: ModelConfig, data_folder: Path
) -> None:
    ours, module = trained(data_folder, precision, "step", sizes=architecture)
    theirs, plain = trained(data_folder, precision, "product", sizes=architecture)
    assert isinstance(module, CastOnce)
    assert plain is theirs
    for name, weight in ours.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, theirs.get_parameter(name)), name


class Casts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrices of weights that change their type, one by one."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        shapes = {(96, 32), (32, 32), (128, 32), (32, 128), (64, 32)}
        if "_to_copy" in str(function) and tuple(out.shape) in shapes and out.dtype == torch.bfloat16:
            self.count += 1
        return out


def test_no_product_casts_a_weight(data_folder: Path) -> None:
    once, each_time = Casts(), Casts()
    trained(data_folder, "bf16", "step", once)
    trained(data_folder, "bf16", "product", each_time)
    assert once.count == 3 * 2, "the head's gradient, which has the same shape, in each micro-step"
    assert each_time.count == 3 * 2 * (1 + 2 * 4 + 1)  # and the head, and four matrices in each of two layers


def test_fp32_and_other_ranks_have_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among ranks torch.compile has to see the casts; DDP itself is not needed to see what it is given."""
    monkeypatch.setattr(parallel, "replicate", lambda module, world: module)
    model, several = GPT(MODEL, 60).init_weights(1), World(CPU.device, 0, 2)
    for precision, world in (("fp32", CPU), ("bf16", several)):
        autocast = use_precision(precision, CPU.device)
        assert parallel.spread(model, config_for(precision, "step"), world, autocast, print) is model


@pytest.mark.parametrize("architecture", [MODEL, MODERN], ids=["gpt2", "modern"])
def test_a_residual_stream_in_bf16_changes_what_flows_and_not_what_comes_out(
    architecture: ModelConfig,
) -> None:
    seen: dict[str, torch.dtype] = {}
    ids = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(1))
    losses = []
    for residual in ("low", "fp32"):
        model = build(replace(architecture, residual=residual), 60).init_weights(1)
        model.h[1].register_forward_pre_hook(
            lambda block, inputs, residual=residual: seen.__setitem__(residual, inputs[0].dtype)
        )
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(ids, ids).item())
    assert seen == {"low": torch.bfloat16, "fp32": torch.float32}
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
