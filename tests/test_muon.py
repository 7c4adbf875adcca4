"""Muon against the singular value decomposition, against torch's own, and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from overnight import muon
from overnight.config import ModelConfig, OptimConfig
from overnight.models.networks import build
from overnight.muon import orthogonalise, shared_out
from overnight.optim import optimizer
from overnight.world import World

ALONE = World(torch.device("cpu"))
CONFIG = OptimConfig(algorithm="muon", lr=0.02, weight_decay=0.1, grad_clip=0.0)
MODERN = ModelConfig(2, 2, 16, 8, 20, architecture="modern", bias=False, activation="relu2")


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8), (1, 1, 5)])
def test_singular_vectors_stay_and_values_become_about_one(shape: tuple[int, ...]) -> None:
    """The polynomials of each singular value are what happens to the matrix."""
    batch = noise(*shape) * torch.tensor([10.0, 0.1, 1.0])[: shape[0], None, None]
    u, s, v = torch.linalg.svd(batch.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for a, b, c in muon.POLYNOMIALS:
        s = a * s + b * s**3 + c * s**5
    found = orthogonalise(batch)
    torch.testing.assert_close(found, (u * s[:, None] @ v).float(), atol=2e-5, rtol=0)
    large = torch.linalg.svdvals(found)
    assert large.max() < 1.15
    assert large.median() > 0.85


@pytest.mark.parametrize("rounding", [-0.02, 0.0, 0.02])
def test_no_singular_value_gets_lost_or_explodes(rounding: float) -> None:
    """From a thousandth to 1, also where every step errs by as much as bf16's products do."""
    x = torch.logspace(-3, 0, 10_000, dtype=torch.float64)
    for a, b, c in muon.POLYNOMIALS:
        x = (a * x + b * x**3 + c * x**5) * (1 + rounding)
    assert x.min() > 0.75
    assert x.max() < 1.2


def test_a_gradient_of_rank_one_survives_bf16() -> None:
    """Its only singular value is 1 from the start, and rounding takes it beyond."""
    batch = noise(4, 64, 1) @ noise(4, 1, 128, seed=2)
    rounded = orthogonalise(batch.bfloat16()).float()
    assert torch.linalg.matrix_norm(rounded, 2).min() > 0.8
    assert torch.linalg.matrix_norm(rounded, 2).max() < 1.2


def test_the_whole_step_is_torchs_within_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its polynomial. It multiplies in bf16: numbers differ by a few hundredths of the largest."""
    monkeypatch.setattr(muon, "POLYNOMIALS", 5 * [(3.4445, -4.7750, 2.0315)])
    shapes = [(24, 24), (24, 24), (96, 24), (24, 96)]
    ours, theirs = ([nn.Parameter(noise(*shape, seed=i)) for i, shape in enumerate(shapes)] for _ in range(2))
    groups = {(24, 24): ours[:2], (96, 24): [ours[2]], (24, 96): [ours[3]]}
    other = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    mine = muon.Muon(groups, other, lr=0.02, momentum=0.9, weight_decay=0.1, world=ALONE)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True)
    begin = [p.detach().clone() for p in ours]
    for step in range(4):
        for pair in zip(ours, theirs, strict=True):
            for p in pair:
                p.grad = noise(*p.shape, seed=100 + step)
        mine.step()
        reference.step()
    for a, b, start in zip(ours, theirs, begin, strict=True):
        moved = (b - start).abs().max()
        assert moved > 0.02
        assert (a - b).abs().max() < 0.03 * moved
        assert (a - b).norm() < 0.01 * (b - start).norm()


def test_queries_keys_and_values_are_orthogonalised_each_for_itself() -> None:
    model = build(MODERN, 20).init_weights(1)
    maker = optimizer(model, CONFIG, ALONE)
    for parameter in model.parameters():
        parameter.grad = noise(*parameter.shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    maker.step()
    for name, parts, factor in (
        ("attn.c_attn", 3, 1.0), ("attn.c_proj", 1, 1.0), ("mlp.c_fc", 1, 2.0), ("mlp.c_proj", 1, 1.0),
    ):  # fmt: skip
        p = model.get_parameter(f"h.1.{name}.weight")
        # The first step: nothing in the momentum, so that the direction is the gradient's.
        directions = [orthogonalise(one[None])[0] for one in p.grad.chunk(parts)]
        wanted = before[f"h.1.{name}.weight"] * (1 - 0.02 * 0.1) - 0.02 * factor * torch.cat(directions)
        torch.testing.assert_close(p.detach(), wanted, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_every_parameter_has_one_optimizer_and_its_own_rate(architecture: str) -> None:
    config = MODERN if architecture == "modern" else ModelConfig(2, 2, 16, 8, 20)
    model = build(config, 20)
    made = optimizer(model, CONFIG, ALONE)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [names[id(p)] for group in made.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    rates = {
        names[id(p)]: ("momentum" in group, group.get("ratio", 1.0) * CONFIG.lr, group["weight_decay"])
        for group in made.param_groups
        for p in group["params"]
    }
    for name, found in rates.items():
        hidden = name.endswith("weight") and (".c_" in name)
        rate = (
            CONFIG.lr if hidden
            else 0.7 if name in ("wte.weight", "wpe.weight")
            else 0.004 if name == "lm_head.weight"
            else 0.015
        )  # fmt: skip
        assert found == (hidden, pytest.approx(rate), 0.1 if hidden else 0.0), name


def test_without_a_gradient_matrices_shrink_only() -> None:
    """By lr x decay = 0.02 x 0.1, decoupled from the momentum, which stays 0."""
    model = build(MODERN, 20).init_weights(1)
    made = optimizer(model, CONFIG, ALONE)
    before = model.h[0].mlp.c_fc.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    torch.testing.assert_close(model.h[0].mlp.c_fc.weight.detach(), before * 0.998, atol=1e-7, rtol=0)


def test_the_gradient_is_divided_as_the_kernel_does_it() -> None:
    """grad_scale divides, for momentum is a mean over gradients of different sizes."""
    found = []
    for scale in (1.0, 4.0):
        model = build(MODERN, 20).init_weights(1)
        made = optimizer(model, CONFIG, ALONE)
        for step in range(2):
            for parameter in model.parameters():
                parameter.grad = (1 + step) * scale * noise(*parameter.shape, seed=step)
            made.grad_scale, made.found_inf = torch.tensor(scale), torch.tensor(0.0)
            made.step()
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("count", "size"), [(1, 3), (4, 3), (7, 3), (6, 3), (5, 1)])
def test_ranks_share_the_matrices_out(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each does as many as any other, all together do all; what is gathered is in order."""
    batch = noise(count, 4, 4)
    sent: list[Tensor] = []
    monkeypatch.setattr(World, "gather", lambda world, part: sent.append(part) or part)
    for rank in range(size):
        shared_out(orthogonalise, batch, World(ALONE.device, rank, size))
    assert {len(part) for part in sent} == {math.ceil(count / size)}
    torch.testing.assert_close(torch.cat(sent)[:count], orthogonalise(batch))
