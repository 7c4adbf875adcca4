"""Copies of the weights as generating text wants them, made once and used for every token.

A few rows times a large matrix is bound by how the matrix is read. On a CPU oneDNN can lay it out for a given
number of rows ("packing"), which pays from the second token on. In bf16 and fp16 it is cast once.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.models.gpt2 import GPT, Linear
from overnight.models.linear import compute_dtype, linear, product, uses_onednn
from overnight.models.networks import Network

MOST_ROWS = 64  # beyond, packing inside the product costs little
LARGE = 10_000_000  # weights: more than a cache holds, and a single row is bound by memory, packed or not


@contextlib.contextmanager
def packed(model: Network, rows: int) -> Iterator[None]:
    """Inside, the model's products use such copies, which take as much memory as the weights; those for a CPU
    in fp32 only in products of at most `rows` rows, up to 64 (and, of large models, of two at least).

    torch.ops.mkldnn is what torch.compile's freezing calls; a torch without it is served unpacked.
    """
    weight = model.wte.weight
    dtype = compute_dtype(weight.device)
    if dtype != torch.float32:
        pack: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]] = partial(cast, dtype)
    elif (
        weight.device.type == "cpu"
        and rows <= MOST_ROWS
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not (rows == 1 and uses_onednn())  # which reads a single row as fast unpacked
    ):
        large = sum(parameter.numel() for parameter in model.parameters()) > LARGE
        pack = partial(laid_out, rows, 2 if large and uses_onednn() else 1)
    else:
        yield
        return
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    for module in linears:
        module.forward = pack(module.weight, module.bias)  # type: ignore[method-assign, assignment]
    if isinstance(model, GPT):  # whose head is the token embedding
        model.logits = pack(weight, model.padding)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        # What was set on the objects hid the methods of their classes.
        vars(model).pop("logits", None)
        for module in linears:
            del module.forward


def laid_out(rows: int, least: int, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function x -> x weight' + bias, with a copy of `weight` laid out for `rows` rows, and used for as few
    as `least`."""
    weight = weight.detach()
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def multiply(x: Tensor) -> Tensor:
        fits = least <= x.numel() // x.size(-1) <= rows
        return product(x, copy, bias) if fits else linear(x, weight, bias)

    return multiply


def cast(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The same, computed in `dtype`."""
    copy = weight.detach().to(dtype)
    beside = None if bias is None else bias.detach().to(dtype)
    return lambda x: F.linear(x.to(dtype), copy, beside)
