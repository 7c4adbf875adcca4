"""Weights in the order in which the CPU's matrix kernels read them, for generating several texts at once.

A few rows times a large matrix is bound by how the matrix is read. MKL can lay a matrix out for a given
number of rows once ("packing"), which pays from the second token on; a single row is read well as it is.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.models.gpt2 import GPT, Linear

MOST_ROWS = 32  # beyond, packing inside the product costs little


@contextlib.contextmanager
def packed(model: GPT, rows: int) -> Iterator[None]:
    """Inside, products of exactly `rows` rows use packed copies of the weights; all others are as ever.

    Does nothing but on a CPU in fp32 with MKL, for 2 to 32 rows. The copies take as much memory as the
    weights. torch.ops.mkl is what torch.compile's freezing calls; a torch without it is served unpacked.
    """
    weight = model.wte.weight
    fits = weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and 1 < rows <= MOST_ROWS
    if not (fits and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")):
        yield
        return
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    for module in linears:
        module.forward = pack(module.weight, module.bias, rows)  # type: ignore[method-assign, assignment]
    model.logits = pack(weight, model.padding, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        # What was set on the objects hid the methods of their classes.
        del model.logits
        for module in linears:
            del module.forward


def pack(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """A function x -> x weight' + bias, with `weight` packed for `rows` rows."""
    weight = weight.detach()
    laid_out = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    def linear(x: Tensor) -> Tensor:
        if x.numel() != rows * x.size(-1):
            return F.linear(x, weight, bias)
        return torch.ops.mkl._mkl_linear(x, laid_out, weight, bias, rows)

    return linear
