"""The norm with its derivative written out, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from overnight.models.norm import EPS, RMSNorm, rms_norm


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6, 8)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=draw)).requires_grad_()
    above = torch.randn(shape, generator=draw)
    theirs = F.rms_norm(x, shape[-1:], eps=EPS)
    torch.testing.assert_close(rms_norm(x), theirs)
    found = torch.autograd.grad(rms_norm(x), x, above)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, x, above))


def test_the_derivative_is_that_of_the_function() -> None:
    """By differences, in fp64; small numbers, where eps counts, among them."""
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[0] *= 1e-3
    assert torch.autograd.gradcheck(RMSNorm.apply, x.requires_grad_())


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
    assert rms_norm(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
