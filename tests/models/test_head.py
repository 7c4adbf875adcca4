"""The loss in parts, against torch's own of the whole."""

import pytest
import torch
from torch.nn import functional as F

from overnight import hardware
from overnight.config import ModelConfig
from overnight.models import head
from overnight.models.gpt2 import GPT

N, C, V = 37, 16, 50


@pytest.fixture(params=[1, 8, 1 << 20], ids=["a row at a time", "parts, the last shorter", "all at once"])
def rows(request, monkeypatch):
    monkeypatch.setitem(hardware.LOGITS_AT_ONCE, "cpu", request.param * V)
    return request.param


def inputs(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randint(V - 3, (N,), generator=generator)


def padding():
    """Three ids that are only padding."""
    out = torch.zeros(V)
    out[V - 3 :] = -torch.inf
    return out


def whole(x, weight, pad, targets, softcap=0.0):
    logits = F.linear(x.float(), weight.float())
    if softcap:
        logits = softcap * logits / torch.sqrt(logits * logits + softcap**2)
    return F.cross_entropy(logits if pad is None else logits + pad, targets, reduction="none")


@pytest.mark.parametrize("softcap", [0.0, 3.0], ids=["", "bounded"])
@pytest.mark.parametrize("pad", [None, padding()], ids=["", "padded"])
def test_loss_and_gradients_are_those_of_all_logits_at_once(rows, pad, softcap):
    """Logits lie within about 15: a bound of 3 matters."""
    x, weight, targets = inputs()
    losses = head.token_losses(x, weight, pad, targets, softcap)
    torch.testing.assert_close(losses, whole(x, weight, pad, targets, softcap))
    loss = head.mean_loss(x, weight, pad, targets, softcap=softcap)
    torch.testing.assert_close(loss, losses.mean())
    torch.testing.assert_close(head.mean_loss(x, weight, pad, targets, True, softcap), loss)
    upstream = torch.tensor(3.0)  # what comes from above is passed on
    found = torch.autograd.grad(loss, (x, weight), upstream)
    wanted = torch.autograd.grad(whole(x, weight, pad, targets, softcap).mean(), (x, weight), upstream)
    torch.testing.assert_close(found, wanted)


def test_a_second_backward_pass_finds_the_same(rows):
    x, weight, targets = inputs()
    loss = head.mean_loss(x, weight, None, targets)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (x, weight)), first, rtol=0, atol=0)


def test_a_frozen_head_needs_no_gradient_and_no_grad_computes_none(rows):
    x, weight, targets = inputs()
    loss = head.mean_loss(x, weight.detach(), None, targets)
    loss.backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(whole(x, weight, None, targets).mean(), x)[0])
    with torch.no_grad():
        assert not head.mean_loss(x, weight, None, targets).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_loss_in_fp32(rows, dtype):
    """Under autocast the gradients come in the type of what they belong to, summed over parts in fp32."""
    x, weight, targets = inputs()
    with torch.autocast("cpu", dtype):
        loss = head.mean_loss(x, weight, None, targets)
    assert loss.dtype == torch.float32
    scale = 65536.0 if dtype == torch.float16 else 1.0  # as GradScaler's
    found = torch.autograd.grad(loss, (x, weight), torch.tensor(scale))
    wanted = torch.autograd.grad(whole(x, weight, None, targets).mean(), (x, weight))
    assert [one.dtype for one in found] == [torch.float32, torch.float32]
    for ours, right in zip(found, wanted, strict=True):
        assert (ours / scale - right).abs().max() < 0.02 * right.abs().max()


@pytest.mark.parametrize("softcap", [0.0, 3.0], ids=["", "bounded"])
def test_it_compiles_into_one_graph_and_computes_the_same(rows, softcap):
    x, weight, targets = inputs()
    compiled = torch.compile(head.mean_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(x, weight, padding(), targets, softcap=softcap)
    found = torch.autograd.grad(loss, (x, weight))
    wanted = torch.autograd.grad(head.mean_loss(x, weight, padding(), targets, softcap=softcap), (x, weight))
    torch.testing.assert_close(found, wanted)


def test_no_tensor_of_all_logits_is_made(monkeypatch):
    """Every tensor made on the way, forward and backward, has at most the rows of a part."""
    monkeypatch.setitem(hardware.LOGITS_AT_ONCE, "cpu", 8 * 1000)
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=1000)
    model = GPT(config, 1000).init_weights(1)
    ids = torch.randint(1000, (4, 33), generator=torch.Generator().manual_seed(1))
    largest = Largest()
    with largest:
        model(ids[:, :-1], ids[:, 1:]).backward()
        with torch.no_grad():
            model.token_losses(ids[:, :-1], ids[:, 1:])
    assert largest.numbers == 16 * 1000  # the embedding's gradient; all logits are 128 x 1000


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Sees every operation's results, in the backward pass too."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out
