"""What has its derivative written out, against torch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from overnight.models.pointwise import EPS, ReLUSquared, RMSNorm, relu_squared, rms_norm

Function = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6, 8)])
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (rms_norm, lambda x: F.rms_norm(x, x.shape[-1:], eps=EPS)),
        (relu_squared, lambda x: F.relu(x).square()),
    ],
    ids=["norm", "ReLU squared"],
)
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], ours: Function, torchs: Function) -> None:
    draw = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=draw)).requires_grad_()
    above = torch.randn(shape, generator=draw)
    torch.testing.assert_close(ours(x), torchs(x))
    found = torch.autograd.grad(ours(x), x, above)
    torch.testing.assert_close(found, torch.autograd.grad(torchs(x), x, above))


@pytest.mark.parametrize("function", [RMSNorm, ReLUSquared])
def test_the_derivative_is_that_of_the_function(function: type[torch.autograd.Function]) -> None:
    """By differences, in fp64; small numbers, where eps counts, among them."""
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[0] *= 1e-3
    assert torch.autograd.gradcheck(function.apply, x.requires_grad_())


def test_zeros_stay_zeros_and_have_a_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x)
    assert torch.equal(y, torch.zeros(2, 4))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()


def test_a_view_is_normalised_as_its_copy() -> None:
    x = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(1))[:, :, 2:7]
    assert torch.equal(rms_norm(x), rms_norm(x.contiguous()))


def test_other_types_stay_what_they_are() -> None:
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    assert rms_norm(x).dtype == relu_squared(x).dtype == torch.bfloat16


def test_autocast_on_cuda_leaves_the_types_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a list of its own of what is fp32; made-up tensors have no numbers, but the types are real."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode():
            x = torch.ones(2, 4, device="cuda", dtype=torch.bfloat16)
            assert rms_norm(x).dtype == relu_squared(x).dtype == torch.bfloat16
            assert F.rms_norm(x, (4,)).dtype == torch.float32, "torch's own would not"
    finally:
        torch.set_autocast_enabled("cuda", False)
