"""x W' + b in fp32 on a CPU, by the library that is faster there.

torch's own products call MKL, which keeps its fast paths for Intel's processors. On others oneDNN, which
torch carries as well, is faster. torch has no public name for it: `torch.ops.mkldnn`
is what torch.compile calls, and a torch without it is served by MKL.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from overnight import machine
from overnight.errors import UserError

Products = Literal["mkl", "onednn"]


def compute_dtype(device: torch.device) -> torch.dtype:
    """What matrix products compute in here: autocast's type inside of it, fp32 elsewhere."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


_chosen: str | None = None  # by `use`


def choose_products(name: str) -> Products:
    """Who multiplies matrices on this machine's CPU; "auto" takes the faster. Raises UserError for a library
    that this torch does not carry."""
    if name == "auto":
        return "onednn" if onednn_is_faster() else "mkl"
    if name == "onednn" and not has_onednn():
        raise UserError("this torch does not carry oneDNN: give --train.products mkl.")
    return "onednn" if name == "onednn" else "mkl"


def use(products: str) -> None:
    """Multiply with "mkl" or "onednn" from now on in this process; "auto": with what is faster here."""
    global _chosen
    _chosen = choose_products(products)


def uses_onednn() -> bool:
    """Whether products here are oneDNN's."""
    return (_chosen or choose_products("auto")) == "onednn"


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def onednn_is_faster() -> bool:
    """Whether torch has oneDNN beside MKL, and the processor is not Intel's."""
    return (
        has_onednn()
        and torch.backends.mkl.is_available()
        and machine.cpu_vendor() not in ("", "GenuineIntel")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN's x W' + b without a gradient: fp32 on the CPU, (..., K), (N, K), (N,) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Product(torch.autograd.Function):
    """`product` with a gradient. That of the weight is MKL's: it reads both factors along their columns,
    which oneDNN does worse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            product(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            rows.t() @ x.flatten(0, -2),
            rows.sum(0) if ctx.has_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, by oneDNN where that is faster: in fp32 on a CPU, outside of autocast and torch.compile."""
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not x.dtype == weight.dtype == torch.float32
        or torch.is_autocast_enabled("cpu")
        or not uses_onednn()
    ):
        return F.linear(x, weight, bias)
    return Product.apply(x, weight, bias) if torch.is_grad_enabled() else product(x, weight, bias)
