"""A training step of a GPT-2, ours and other people's, each as its users run it: `NAME(setting)` returns a
function that makes a step and waits for its loss.

Made-up tokens, AdamW, clipping at 1, the same sizes everywhere. Each is meant to live in a process of its own
(common.in_turn).
"""

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overnight import stopwatch, world
from overnight.config import Config, ModelConfig, OptimConfig
from overnight.data.batches import Batches
from overnight.models.networks import build
from overnight.presets import PRESETS
from overnight.step import Engine, frozen_garbage

Step = Callable[[], float]


@dataclass(frozen=True)
class Setting:
    """What is trained how."""

    model: ModelConfig
    rows: int
    device: str = "cpu"
    half: bool = False
    """bf16, by autocast."""
    compiled: bool = False
    micro_steps: int = 1


def overnight(setting: Setting, change: Callable[[Config], Config] = lambda config: config) -> Step:
    """The engine with its defaults, or changed ones, in the surroundings of a run."""
    stack = ExitStack()
    here = stack.enter_context(world.connect(setting.device))
    stack.enter_context(frozen_garbage())
    rows, T = setting.rows, setting.model.block_size
    config = Config(
        data="", run="", steps=10**6, batch_tokens=setting.micro_steps * rows * T, micro_batch=rows,
        device=setting.device, precision="bf16" if setting.half else "fp32",  # type: ignore[arg-type]
        compile="on" if setting.compiled else "off", model=setting.model, optim=OptimConfig(lr=1e-4),
    )  # fmt: skip
    config = change(config)
    vocabulary = setting.model.vocab_size
    assert isinstance(vocabulary, int)
    n_tokens = min(vocabulary, 50_257)
    batches = Batches(stopwatch.tokens(n_tokens), T, config.sequences, seed=1)
    engine = Engine(build(config.model, n_tokens).init_weights(1), config, batches, here, stopwatch.give_up)
    steps = iter(range(1, 10**6))

    def step() -> float:
        _ = stack  # what it holds lasts as long as the step can be called
        return engine.update(next(steps))[0].item()

    return step


def as_in_the_lecture(config: Config) -> Config:
    """Its last rung: logits of all positions at once, casts in every product, torch's choice of attention."""
    model = replace(config.model, logits="whole", residual="fp32")
    return replace(
        config, model=model, train=replace(config.train, cast="product", attention_kernel="default")
    )


def lecture(setting: Setting) -> Step:
    return overnight(setting, as_in_the_lecture)


def as_modern(config: Config) -> Config:
    """The modern recipe at the same depth, width and vocabulary."""
    recipe, model = PRESETS["modern-124m"](), config.model
    sizes = {"n_layer": model.n_layer, "n_embd": model.n_embd, "block_size": model.block_size}
    network = replace(recipe.model, **sizes, vocab_size=model.vocab_size).sized()
    return replace(config, model=network, optim=recipe.optim)


def modern(setting: Setting) -> Step:
    return overnight(setting, as_modern)


def usual(
    setting: Setting, model: nn.Module, loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:  # fmt: skip
    """The usual loop around somebody's model."""
    device = torch.device(setting.device)
    model.to(device).train()
    fused = device.type == "cuda"
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=fused)
    if fused:
        torch.set_float32_matmul_precision("high")
    called = torch.compile(model) if setting.compiled else model
    autocast: Callable[[], AbstractContextManager] = (
        partial(torch.autocast, device.type, torch.bfloat16) if setting.half else nullcontext
    )
    vocabulary = setting.model.vocab_size
    assert isinstance(vocabulary, int)
    shape = setting.rows, setting.model.block_size + 1

    def step() -> float:
        for _ in range(setting.micro_steps):
            ids = torch.randint(min(vocabulary, 50_257), shape).to(device)
            with autocast():
                loss = loss_of(called, ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / setting.micro_steps).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def transformers(setting: Setting) -> Step:
    """GPT2LMHeadModel with its own loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = setting.model
    config = GPT2Config(
        n_layer=model.n_layer, n_head=model.n_head, n_embd=model.n_embd, n_positions=model.block_size,
        vocab_size=model.vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[model.activation], use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip

    def loss_of(called: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = called(input_ids=inputs).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return usual(setting, GPT2LMHeadModel(config), loss_of)


class TorchGPT(nn.Module):
    """GPT-2 from torch's own modules."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        assert isinstance(model.vocab_size, int)
        self.wte = nn.Embedding(model.vocab_size, model.n_embd)
        self.wpe = nn.Embedding(model.block_size, model.n_embd)
        layer = nn.TransformerEncoderLayer(
            model.n_embd, model.n_head, 4 * model.n_embd, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True, bias=model.bias,
        )  # fmt: skip
        norm = nn.LayerNorm(model.n_embd)
        self.h = nn.TransformerEncoder(layer, model.n_layer, norm, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(model.block_size))
        nn.init.normal_(self.wte.weight, 0.0, 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.wte(inputs) + self.wpe.weight
        return self.h(x, mask=self.mask, is_causal=True) @ self.wte.weight.t()


def torch_modules(setting: Setting) -> Step:
    def loss_of(called: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(called(inputs).float().flatten(0, 1), targets.flatten())

    return usual(setting, TorchGPT(setting.model), loss_of)


def nanogpt(folder: Path, setting: Setting) -> Step:
    """The model.py of a checkout of nanoGPT, its optimizer, and the step of its train.py."""
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(sys.stderr):  # it tells about itself
        from model import GPT as TheirGPT
        from model import GPTConfig

        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
        model = TheirGPT(GPTConfig(**{name: getattr(setting.model, name) for name in names}, dropout=0.0))
        model.to(setting.device)
        optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), setting.device)
    return usual(setting, model, lambda called, inputs, targets: called(inputs, targets)[1], optimizer)
