"""Weights in the order in which the CPU's matrix kernels read them, for generating text.

A few rows times a large matrix is bound by how the matrix is read. oneDNN can lay a matrix out for a given
number of rows once ("packing"), which pays from the second token on.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from overnight.models.gpt2 import GPT, Linear
from overnight.models.linear import linear, onednn_is_faster

MOST_ROWS = 64  # beyond, packing inside the product costs little


@contextlib.contextmanager
def packed(model: GPT, rows: int) -> Iterator[None]:
    """Inside, products of exactly `rows` rows use packed copies of the weights; all others are as ever.

    Does nothing but on a CPU in fp32 with oneDNN, for up to 64 rows. The copies take as much memory as the
    weights. torch.ops.mkldnn is what torch.compile's freezing calls; a torch without it is served unpacked.
    """
    weight = model.wte.weight
    fits = weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and rows <= MOST_ROWS
    as_fast_unpacked = rows == 1 and onednn_is_faster()
    if as_fast_unpacked or not (fits and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
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
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def product(x: Tensor) -> Tensor:
        if x.numel() != rows * x.size(-1):
            return linear(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")

    return product
