"""The root mean square norm without gains (Zhang and Sennrich, 2019): x / sqrt(mean(x x) + eps).

torch's own is one kernel on a GPU, and what a compiler sees through. On a CPU it is a dozen operations there
and back again, in which a small model would spend a tenth of its time; there the derivative is written out.

Letters:  ...  any sizes    C  what is normalised
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def rms_norm(x: Tensor) -> Tensor:
    """(..., C) -> (..., C) of the same type, with a mean square of 1 along the last dimension."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    return RMSNorm.apply(x)


class RMSNorm(torch.autograd.Function):
    """y = x r, r = 1 / sqrt(mean(x x) + eps). A small change dx moves y by r (dx - y mean(y dx)); that map is
    its own transpose, so the gradient goes back through the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1)
        r = (norm.square() / x.size(-1) + EPS).rsqrt()
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, r = ctx.saved_tensors
        along = torch.linalg.vecdot(y, grad).unsqueeze(-1) / y.size(-1)  # (..., 1): mean(y dy)
        return torch.addcmul(grad, y, along, value=-1).mul_(r)
