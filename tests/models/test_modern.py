"""The modern network against the same written down another way, and against itself under every option."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.config import ModelConfig
from overnight.models.cache import KVCache
from overnight.models.modern import ModernGPT

TINY = ModelConfig(
    n_layer=3, n_head=2, n_embd=24, block_size=16, vocab_size=40, architecture="modern", bias=False,
    activation="relu2",
)  # fmt: skip


def far_from_initial(model: ModernGPT) -> ModernGPT:
    """Weights as large as a trained model's, so that every term matters; logits far enough to be bounded."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 6.0 if name == "lm_head.weight" else 1.0 if parameter.dim() < 2 else 1.5
            scale /= math.sqrt(parameter.shape[-1])
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def reference(model: ModernGPT, idx: Tensor) -> Tensor:
    """(B, T) -> logits in fp64, by complex numbers, explicit sums and no code of the model's."""
    weights = {name: parameter.double() for name, parameter in model.named_parameters()}
    config, (B, T) = model.config, idx.shape
    H, D = config.n_head, config.n_embd // config.n_head

    def norm(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: Tensor) -> Tensor:  # (B, T, H, D): pairs (i, i + D/2) as complex numbers
        rates = torch.tensor([10_000.0 ** -(i / (D // 2 - 1)) for i in range(D // 2)], dtype=torch.float64)
        angles = torch.arange(T, dtype=torch.float64)[:, None] * rates
        # The model turns clockwise; only differences of angles matter, and those have to be its own.
        z = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.exp(-1j * angles)[:, None]
        return torch.cat([z.real, z.imag], -1)

    x = x0 = norm(weights["wte.weight"][idx])
    for layer in range(config.n_layer):
        block = {name.removeprefix(f"h.{layer}."): w for name, w in weights.items() if f"h.{layer}." in name}
        x = x + weights["skips"][layer] * x0
        q, k, v = (norm(x) @ block["attn.c_attn.weight"].T).view(B, T, 3, H, D).unbind(2)
        q, k = turned(norm(q)), turned(norm(k))
        scores = 0.12 * math.sqrt(128 / D) * torch.einsum("bthd,bshd->bhts", q, k)
        weight = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        y = torch.einsum("bhts,bshd->bthd", weight, v).reshape(B, T, H * D)
        x = x + y @ block["attn.c_proj.weight"].T
        x = x + (norm(x) @ block["mlp.c_fc.weight"].T).clamp(min=0).pow(2) @ block["mlp.c_proj.weight"].T
    z = norm(x) @ weights["lm_head.weight"].T
    return (15 * z / (z * z + 225).sqrt())[..., : model.n_tokens]


def ids(rows: int = 3, length: int = 16, n: int = 37) -> Tensor:
    return torch.randint(0, n, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model: ModernGPT, idx: Tensor) -> Tensor:
    return model.logits(model.hidden(idx))


@pytest.mark.parametrize("attention", ["flash", "manual"])
@pytest.mark.parametrize("n_head", [1, 2, 6])
def test_logits_are_those_of_the_reference(attention: str, n_head: int) -> None:
    model = far_from_initial(ModernGPT(replace(TINY, attention=attention, n_head=n_head), 37))
    with torch.no_grad():
        expected, ours = reference(model, ids()), logits(model, ids())
    assert expected.std() > 1, "the reference's logits say something"
    assert expected.abs().max() > 10, "and some are bounded"
    torch.testing.assert_close(ours[..., :37].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("computed", ["parts", "whole"])
def test_gradients_are_those_of_the_reference(computed: str) -> None:
    model = far_from_initial(ModernGPT(replace(TINY, logits=computed), 37))
    tokens = ids(length=17)
    expected = F.cross_entropy(reference(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    for (name, parameter), right in zip(model.named_parameters(), wanted, strict=True):
        assert right.abs().max() > 1e-5, name
        torch.testing.assert_close(parameter.grad, right.float(), atol=1e-5, rtol=1e-3, msg=name)


def test_padding_is_inert() -> None:
    """No loss, no probability and no gradient comes from rows beyond the tokenizer's ids."""
    model = far_from_initial(ModernGPT(TINY, 37))
    bare = ModernGPT(replace(TINY, vocab_size=37), 37)
    cut = {name: model.state_dict()[name][:37] for name in ("wte.weight", "lm_head.weight")}
    bare.load_state_dict(model.state_dict() | cut)
    tokens = ids(length=17)
    loss = model(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss, bare(tokens[:, :-1], tokens[:, 1:]))
    assert (logits(model, tokens[:, :-1]).softmax(-1)[..., 37:] == 0).all()
    loss.backward()
    for weight in (model.wte.weight, model.lm_head.weight):
        assert (weight.grad[37:] == 0).all()
        assert (weight.grad[:37] != 0).any()


def test_no_position_sees_the_future() -> None:
    model, tokens = far_from_initial(ModernGPT(TINY, 40)), ids(1)
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 40
    before, after = logits(model, tokens), logits(model, changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_attention_sees_distances_not_places() -> None:
    """The same text further on has the same scores: positions enter as differences of angles only."""
    model = far_from_initial(ModernGPT(TINY, 37))
    tokens = ids(2, 9)
    with torch.no_grad():
        here = logits(model, tokens)
        there = model.logits(model.hidden(tokens, positions=torch.arange(7, 16)))
        spread = model.logits(model.hidden(tokens[:, :8], positions=torch.arange(0, 16, 2)))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    assert (spread - here[:, :8])[..., :37].abs().max() > 0.1


@pytest.mark.parametrize("attention", ["flash", "manual"])
@pytest.mark.parametrize("cuts", [[1] * 16, [5, 1, 1, 9], [16], [3, 4, 9]])
def test_the_cache_changes_nothing(attention: str, cuts: list[int]) -> None:
    model = far_from_initial(ModernGPT(replace(TINY, attention=attention), 37))
    cache = KVCache(model.config, 3, 16, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        pieces = [model.logits(model.hidden(piece, cache)) for piece in ids().split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), logits(model, ids()), atol=1e-4, rtol=0)


def test_initialisation() -> None:
    """What writes to the residual stream is 0; what reads it has half the deviation that would keep its
    size; padding is 0."""
    config = replace(TINY, n_embd=256, vocab_size=2048)
    model = ModernGPT(config, 2000).init_weights(seed=3)
    for name, parameter in model.named_parameters():
        if name.endswith(("c_proj.weight", "lm_head.weight", "skips")):
            assert (parameter == 0).all(), name
        else:
            wanted = 1.0 if name == "wte.weight" else 0.5 / 16
            used = parameter[:2000]
            assert used.std().item() == pytest.approx(wanted, rel=0.02), name
            assert abs(used.mean().item()) < wanted / 50, name
    assert (model.wte.weight[2000:] == 0).all()
    again, other = (ModernGPT(config, 2000).init_weights(seed) for seed in (3, 4))
    assert torch.equal(model.wte.weight, again.wte.weight)
    assert not torch.equal(model.wte.weight, other.wte.weight)
    padded = ModernGPT(replace(config, vocab_size=2112), 2000).init_weights(seed=3)
    assert torch.equal(padded.h[2].mlp.c_fc.weight, model.h[2].mlp.c_fc.weight), "whatever the padding"


def test_an_untrained_model_guesses_evenly() -> None:
    model, tokens = ModernGPT(TINY, 37).init_weights(seed=1), ids(length=17)
    assert model(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(37), abs=1e-6)


def test_the_loss_is_the_mean_of_the_tokens_losses() -> None:
    model, tokens = far_from_initial(ModernGPT(TINY, 37)), ids(length=17)
    each = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    assert each.shape == (3, 16)
    torch.testing.assert_close(each.mean(), model(tokens[:, :-1], tokens[:, 1:]))


def test_logits_are_bounded_in_fp32_whatever_products_are_computed_in() -> None:
    model = far_from_initial(ModernGPT(TINY, 37))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(model, ids())[..., :37]
    assert found.dtype == torch.float32
    assert 14.9 < found.abs().max() < 15.001


@pytest.mark.parametrize("residual", ["low", "fp32"])
def test_bf16_comes_near(residual: str) -> None:
    model, tokens = far_from_initial(ModernGPT(replace(TINY, residual=residual), 37)), ids(length=17)
    exact = model(tokens[:, :-1], tokens[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        near = model(tokens[:, :-1], tokens[:, 1:])
    assert near.dtype == torch.float32
    assert near.item() == pytest.approx(exact.item(), rel=0.03)
    near.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_it_compiles_into_one_graph_and_computes_the_same() -> None:
    model, tokens = far_from_initial(ModernGPT(TINY, 37)), ids(length=17)
    inputs, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    found = torch.autograd.grad(compiled(inputs, targets), parameters)
    torch.testing.assert_close(found, torch.autograd.grad(model(inputs, targets), parameters))
