"""The modern network's norm and activation, with their derivatives written out for the CPU.

On a GPU torch has a kernel for the one, and a compiler fuses the other. On a CPU torch takes a dozen
operations for the norm, there and back again, and a slow one for the derivative of ReLU.

Letters:  ...  any sizes    C  what is normalised
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def by_hand(x: Tensor) -> bool:
    """Whether the derivatives below are the faster ones."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x x) + eps), the root mean square norm without gains (Zhang and Sennrich, 2019):
    (..., C) -> (..., C) of the same type."""
    if by_hand(x):
        return RMSNorm.apply(x) if torch.is_grad_enabled() else normalised(x)[0]
    # Autocast lets it give fp32 on CUDA, and would take the residual stream along.
    return F.rms_norm(x, x.shape[-1:], eps=EPS).to(x.dtype)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, of the same type (So et al., 2021)."""
    if by_hand(x) and torch.is_grad_enabled():
        return ReLUSquared.apply(x)
    r = F.relu(x)
    return r * r  # autocast makes powers fp32, products not


def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x r, (..., C), and r, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    r = (norm.square() / x.size(-1) + EPS).rsqrt()
    return x * r, r


class RMSNorm(torch.autograd.Function):
    """y = x r, r = 1 / sqrt(mean(x x) + eps). A small change dx moves y by r (dx - y mean(y dx)); that map is
    its own transpose, so the gradient goes back through the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, r = normalised(x)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, r = ctx.saved_tensors
        along = torch.linalg.vecdot(y, grad).unsqueeze(-1) / y.size(-1)  # (..., 1): mean(y dy)
        return torch.addcmul(grad, y, along, value=-1).mul_(r)


class ReLUSquared(torch.autograd.Function):
    """y = r r, r = max(x, 0), has the derivative 2 r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = x.clamp(min=0)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return (grad * r).mul_(2)
