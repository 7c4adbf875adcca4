"""Which parameters decay, AdamW, and the learning rate of a step."""

import math

import torch
from torch import nn

from overnight.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and embeddings decay; biases and norms, which have one dimension, do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); fused: in the one kernel that cpu, cuda and mps all have."""
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=config.fused)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of update `step` (0 is the first) of `steps`.

    A linear warm-up that starts above 0 and reaches lr at its last step, then half a cosine that ends at
    min_lr behind the last step (or a level line).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (config.lr - config.min_lr)
