"""Weights cast once a step, against autocast, which casts them in every product."""

import pytest
import torch
from torch import nn

from overnight.config import Config, ModelConfig, TrainConfig
from overnight.models.gpt2 import GPT
from overnight.optim import adamw
from overnight.parallel import CastOnce, spread
from overnight.step import train_step
from overnight.world import World, use_precision

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64)
CPU = World(torch.device("cpu"))


def config_for(precision: str, cast: str) -> Config:
    return Config(
        "d", "r", 5, 64, micro_batch=2, precision=precision, compile="off", model=MODEL,
        train=TrainConfig(cast=cast),
    )  # fmt: skip


def batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two micro-batches."""
    draw = torch.randint(60, (2, 3, 17), generator=torch.Generator().manual_seed(step))
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in draw]


def trained(precision: str, cast: str, watch: object = None) -> tuple[GPT, nn.Module]:
    config = config_for(precision, cast)
    model = GPT(MODEL, 60).init_weights(1)
    autocast = use_precision(precision, CPU.device)
    module = spread(model, config, CPU, autocast, print)
    optimizer = adamw(model, config.optim)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    if isinstance(module, CastOnce):
        optimizer.register_step_post_hook(lambda *_: module.refresh())
    for step in range(3):
        with watch or torch.enable_grad():
            train_step(module, optimizer, scaler, batches(step), 2, 1e-2, 1.0, autocast)
    return model, module


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_same_weights_come_out_bit_for_bit(precision: str) -> None:
    ours, module = trained(precision, "step")
    theirs, plain = trained(precision, "product")
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


def test_no_product_casts_a_weight() -> None:
    once, each_time = Casts(), Casts()
    trained("bf16", "step", once)
    trained("bf16", "product", each_time)
    assert once.count == 3 * 2, "the head's gradient, which has the same shape, in each micro-step"
    assert each_time.count == 3 * 2 * (1 + 2 * 4 + 1)  # and the head, and four matrices in each of two layers


def test_fp32_and_other_ranks_have_no_copies() -> None:
    model = GPT(MODEL, 60).init_weights(1)
    assert spread(model, config_for("fp32", "step"), CPU, use_precision("fp32", CPU.device), print) is model
    several = World(CPU.device, 0, 2)
    with pytest.raises((ValueError, RuntimeError), match="process group"):  # DDP: it was asked for
        spread(model, config_for("bf16", "step"), several, use_precision("bf16", CPU.device), print)


def test_a_residual_stream_in_bf16_changes_what_flows_and_not_what_comes_out() -> None:
    seen: dict[str, torch.dtype] = {}
    ids = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(1))
    losses = []
    for residual in ("low", "fp32"):
        config = ModelConfig(2, 2, 32, 16, 64, residual=residual)
        model = GPT(config, 60).init_weights(1)
        model.h[1].register_forward_pre_hook(
            lambda block, inputs, residual=residual: seen.__setitem__(residual, inputs[0].dtype)
        )
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(ids, ids).item())
    assert seen == {"low": torch.bfloat16, "fp32": torch.float32}
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
