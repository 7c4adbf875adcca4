"""Which parameters decay, AdamW or Muon, and the learning rate of a step."""

import math

import torch
from torch import nn

from overnight.config import OptimConfig
from overnight.muon import Muon
from overnight.world import World

# Matrices inside of the network, by the ends of their names, and how many of them such a parameter holds.
HIDDEN = {"c_attn.weight": 3, "c_proj.weight": 1, "c_fc.weight": 1}
FIRST_MOMENTUM = 0.85  # Muon's at step 0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and embeddings decay; biases and norms, which have one dimension, do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) for the whole model."""
    return adamw_of(parameter_groups(model, config.weight_decay), config)


def adamw_of(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW for some groups; fused: in the one kernel that cpu, cuda and mps all have."""
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=config.fused)


def muon(model: nn.Module, config: OptimConfig, world: World) -> Muon:
    """Muon for the matrices inside, each for itself, and AdamW without decay for the embeddings, the head and
    what is no matrix."""
    matrices: dict[tuple[int, int], list[nn.Parameter]] = {}
    rates = {"embedding": config.embedding_lr, "head": config.head_lr, "scalar": config.scalar_lr}
    others: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in model.named_parameters():
        if end := next((end for end in HIDDEN if name.endswith(end)), None):
            shape = (parameter.size(0) // HIDDEN[end], parameter.size(1))
            matrices.setdefault(shape, []).append(parameter)
        else:
            kind = "scalar" if parameter.dim() < 2 else "head" if name == "lm_head.weight" else "embedding"
            others[kind].append(parameter)
    groups = [
        {"params": others[kind], "weight_decay": 0.0, "ratio": rates[kind] / config.lr} for kind in rates
    ]
    return Muon(matrices, adamw_of(groups, config), config.lr, config.momentum, config.weight_decay, world)


def optimizer(model: nn.Module, config: OptimConfig, world: World) -> torch.optim.Optimizer:
    """What config.algorithm names. A group's learning rate is the step's times its "ratio", 1 where it has
    none."""
    if config.algorithm == "muon":
        return muon(model, config, world)
    return adamw(model, config)


def momentum(step: int, config: OptimConfig) -> float:
    """Muon's at update `step` (0 is the first): linear from FIRST_MOMENTUM to config.momentum, then level."""
    share = min(1.0, step / config.momentum_steps) if config.momentum_steps else 1.0
    return (1 - share) * min(FIRST_MOMENTUM, config.momentum) + share * config.momentum


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of update `step` (0 is the first) of `steps`.

    A linear warm-up that starts above 0 and reaches lr at its last step; then down to min_lr, reached behind
    the last step: in half a cosine, in a line, or level until a line over the last `decay` of all steps
    (trapezoid), which may begin before the warm-up has ended. Or a level line.
    """
    rising = config.lr * (step + 1) / max(1, config.warmup_steps)
    if config.schedule == "trapezoid":
        height = min(1.0, max(0.0, 1 - step / steps) / config.decay)
        falling = config.min_lr + height * (config.lr - config.min_lr)
        return min(rising, falling) if step < config.warmup_steps else falling
    if step < config.warmup_steps:
        return rising
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    height = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress}[config.schedule]
    return config.min_lr + height * (config.lr - config.min_lr)
