"""The loss of the last layer's output, without ever holding the logits of a whole batch.

64 x 1,024 positions of GPT-2 have 13 GB of fp32 logits, and as many of their gradient. Nothing is needed
of them but the loss and two products with their gradient, so some rows at a time are computed, used and
forgotten.

Letters:  N  positions    C  n_embd    V  rows of the embedding
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.hardware import rows_at_once
from overnight.models.linear import compute_dtype, linear


def padding(rows: int, n_tokens: int) -> Tensor | None:
    """What is added to the logits of an embedding of `rows` rows: nothing for the tokenizer's ids, minus
    infinity for those behind them. (rows,) fp32; None where there are none."""
    if n_tokens >= rows:
        return None
    return torch.zeros(rows).masked_fill_(torch.arange(rows) >= n_tokens, -torch.inf)


def shrinkage(z: Tensor, softcap: float) -> Tensor:
    """r = 1 / sqrt(1 + (z / softcap)^2): z r stays between -softcap and softcap, and is about z where that is
    small. Its derivative is r^3."""
    return torch.addcmul(z.new_ones(()), z, z, value=softcap**-2).rsqrt_()


def softcapped(z: Tensor, softcap: float) -> Tensor:
    """Logits that are never beyond `softcap`; z itself where that is 0."""
    return z * shrinkage(z, softcap) if softcap else z


def log_probabilities(logits: Tensor, padding: Tensor | None) -> Tensor:
    """(N, V) fp32 -> the same. padding: added to the logits."""
    return F.log_softmax(logits if padding is None else logits + padding, dim=-1)


def token_losses(
    x: Tensor, weight: Tensor, padding: Tensor | None, targets: Tensor, softcap: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each target in nats: (N, C), (V, C), (V,), (N,) int64 -> (N,) fp32, whatever
    the products are computed in."""
    rows = rows_at_once(x.device.type, weight.size(0))
    losses = []
    for part, wanted in zip(x.split(rows), targets.split(rows), strict=True):
        logits = softcapped(linear(part, weight).float(), softcap)
        losses.append(F.nll_loss(log_probabilities(logits, padding), wanted, reduction="none"))
    return torch.cat(losses)


def mean_loss(
    x: Tensor,
    weight: Tensor,
    padding: Tensor | None,
    targets: Tensor,
    whole: bool = False,
    softcap: float = 0.0,
) -> Tensor:
    """The mean of `token_losses`, a fp32 scalar. whole: the logits of all positions at once, as the lecture
    has it."""
    if whole:
        logits = softcapped(linear(x, weight).float(), softcap)
        return F.nll_loss(log_probabilities(logits, padding), targets)
    dtype = compute_dtype(x.device)
    return MeanLoss.apply(x.to(dtype), weight.to(dtype), padding, targets, softcap)


class MeanLoss(torch.autograd.Function):
    """Its gradient is computed along with it, while the logits are there: as many products as forward and
    backward pass have otherwise."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, padding: Tensor | None, targets: Tensor, softcap: float
    ) -> Tensor:
        rows = rows_at_once(x.device.type, weight.size(0))
        total = torch.zeros((), device=x.device)
        grad_x, grad_weight = [], torch.zeros(weight.shape, device=x.device)  # fp32: several parts add up
        for part, wanted in zip(x.split(rows), targets.split(rows), strict=True):
            logits = linear(part, weight).float()
            r = shrinkage(logits, softcap) if softcap else None
            found = log_probabilities(logits if r is None else logits.mul_(r), padding)
            del logits  # a third of the memory of a part
            total -= found.gather(1, wanted[:, None]).sum()
            if any(ctx.needs_input_grad):
                grad = less_one(found, wanted)  # of the summed loss, by the logits
                grad = (grad if r is None else grad.mul_(r.pow_(3))).to(x.dtype)
                grad_x.append(linear(grad, weight.t()))
                if part.dtype == torch.float32:
                    grad_weight.addmm_(grad.t(), part)
                else:
                    grad_weight += grad.t() @ part
        if grad_x:
            ctx.save_for_backward(torch.cat(grad_x), grad_weight)
        ctx.dtype = weight.dtype
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grad / len(grad_x)
        # Scaled in fp32, and only here: 1 / N alone is below what fp16 holds well.
        return (grad_x * scale).to(grad_x.dtype), (grad_weight * scale).to(ctx.dtype), None, None, None


def less_one(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Probabilities, less one at the target. Reuses the memory; in one pass where a compiler can do that."""
    if torch.compiler.is_compiling():
        ids = torch.arange(log_probabilities.size(1), device=targets.device)
        return log_probabilities.exp() - (ids == targets[:, None]).float()
    column = targets[:, None]
    return log_probabilities.exp_().scatter_add_(
        1, column, torch.full(column.shape, -1.0, device=column.device)
    )
