"""oneDNN's products against torch's own, whichever of them this machine takes by itself."""

import pytest
import torch
from torch.nn import functional as F

from overnight import machine
from overnight.errors import UserError
from overnight.models import linear as module
from overnight.models.linear import linear, onednn_is_faster

has_onednn = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch does not carry both MKL and oneDNN",
)


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(module, "_chosen", "onednn")


def factors(shape, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, 24, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(40, 24, generator=generator, dtype=dtype).requires_grad_()
    return x, weight, torch.randn(40, generator=generator, dtype=dtype).requires_grad_() if bias else None


@has_onednn
@pytest.mark.parametrize("shape", [(3, 5), (7,), (2, 3, 4), (1,)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(onednn, shape, bias):
    inputs = [one for one in factors(shape, bias) if one is not None]
    ours, theirs = linear(*inputs), F.linear(*inputs)
    assert "Product" in ours.grad_fn.name()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        rtol=1e-5,
        atol=1e-4,
    )
    with torch.no_grad():
        torch.testing.assert_close(linear(*inputs), theirs, rtol=1e-5, atol=1e-5)


@has_onednn
def test_an_input_without_gradient_and_one_that_is_not_contiguous(onednn):
    x, weight, bias = factors((6, 4), bias=True)
    x = x.detach().transpose(0, 1)
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), weight),
        torch.autograd.grad(theirs.sum(), weight),
        rtol=1e-5,
        atol=1e-4,
    )


@has_onednn
def test_it_is_left_alone_where_torch_does_something_of_its_own(onednn):
    x, weight, bias = factors((5,), bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert linear(*(one.double() for one in (x, weight, bias))).dtype == torch.float64
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)


@has_onednn
@pytest.mark.parametrize(("vendor", "faster"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
def test_the_processor_decides(monkeypatch, vendor, faster):
    monkeypatch.setattr(machine, "cpu_vendor", lambda: vendor)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() is faster
    finally:
        onednn_is_faster.cache_clear()


def test_a_library_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(module, "has_onednn", lambda: False)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    with pytest.raises(UserError, match=r"give --train\.products mkl"):
        module.choose_products("onednn")
    assert module.choose_products("auto") == "mkl"


@has_onednn
def test_what_was_chosen_is_used(monkeypatch):
    monkeypatch.setattr(module, "_chosen", None)
    module.use("mkl")
    x, weight, bias = factors((5,), bias=True)
    assert "Product" not in linear(x, weight, bias).grad_fn.name()
    module.use("onednn")
    assert "Product" in linear(x, weight, bias).grad_fn.name()
