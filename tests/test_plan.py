"""Costs before spending anything: FLOPs, memory, peaks."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from overnight import plan
from overnight.checkpoint import tensors_of
from overnight.config import Config, ModelConfig, OptimConfig
from overnight.models import linear
from overnight.models.networks import build
from overnight.optim import optimizer
from overnight.world import World

GPT2 = ModelConfig(vocab_size=50_257)


@pytest.mark.parametrize("vocab_size", [50_257, 50_304])
def test_gpt2s_flops_by_hand(vocab_size: int) -> None:
    """6 for each weight in use, 12 for each pair of positions, layer and channel: about 855 million."""
    block = 768 * (3 * 768) + 3 * 768 + 768 * 768 + 768 + 768 * 3072 + 3072 + 3072 * 768 + 768 + 4 * 768
    weights = vocab_size * 768 + 12 * block + 2 * 768
    by_hand = 6 * weights + 12 * 12 * 768 * 1024
    found = plan.flops_per_token(ModelConfig(vocab_size=vocab_size))
    assert found == by_hand
    assert found == pytest.approx(855e6, abs=1e6)


MODERN = {"architecture": "modern", "bias": False, "activation": "relu2"}
KINDS = [{"bias": True}, {"bias": False}, MODERN]


@pytest.mark.parametrize("kind", KINDS, ids=["gpt2", "without biases", "modern"])
@pytest.mark.parametrize("sizes", [(1, 1, 8, 4, 10), (3, 2, 16, 32, 100)])
def test_parameters_are_counted_as_the_model_has_them(sizes: tuple[int, ...], kind: dict) -> None:
    config = ModelConfig(*sizes, **kind)
    assert plan.parameters(config) == sum(p.numel() for p in build(config, sizes[-1]).parameters())


@pytest.mark.parametrize("kind", [{}, MODERN], ids=["gpt2", "modern"])
def test_the_parts_are_the_models_own(kind: dict) -> None:
    config = ModelConfig(3, 2, 16, 32, 100, **kind)
    parts = plan.parameters_by_part(config)
    found = dict.fromkeys(parts, 0)
    for name, parameter in build(config, 100).named_parameters():
        part = next(
            part
            for key, part in {
                "wte": "token embedding",
                "wpe": "position embedding",
                "attn": "attention",
                "mlp": "MLP",
                "ln_": "norms",
                "skips": "skips",
                "lm_head": "head",
            }.items()
            if key in name
        )
        found[part] += parameter.numel()
    assert found == parts


@pytest.mark.parametrize("kind", [{}, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("sizes", [(2, 2, 64, 32, 128), (3, 4, 32, 64, 50)])
def test_flops_are_those_that_torch_counts(
    sizes: tuple[int, ...], kind: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts matrix products only; 6 N also counts biases, norms and skips, which are few."""
    config = ModelConfig(*sizes, **kind)
    L, _, C, T, V = sizes
    model = build(config, V).init_weights(seed=1)
    ids = torch.zeros(3, T, dtype=torch.long)
    monkeypatch.setattr(
        linear, "_chosen", "mkl"
    )  # it does not count oneDNN's products, nor those that add in place
    in_place = {torch.ops.aten.addmm_: lambda out, a, b, **rest: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, ids).backward()
    counted = counter.get_total_flops() / ids.numel()
    matrices = L * 12 * C * C + V * C
    assert counted == 6 * matrices + 12 * L * C * T
    vectors = plan.parameters(config) - matrices - (V if kind else T) * C  # what is only looked up
    assert plan.flops_per_token(config) == counted + 6 * vectors
    # Counted causally, attention costs half.
    assert plan.flops_per_token(config) - plan.flops_per_token(config, causal=True) == 6 * L * C * T


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
@pytest.mark.parametrize("kind", [{}, MODERN], ids=["gpt2", "modern"])
def test_a_checkpoint_is_as_large_as_planned(kind: dict, algorithm: str) -> None:
    """But for the steps that AdamW counts for each parameter."""
    model = ModelConfig(3, 2, 16, 32, 100, **kind)
    network, config = build(model, 100), OptimConfig(algorithm=algorithm)
    made = optimizer(network, config, World(torch.device("cpu")))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    held = [tensor for _, name, tensor in tensors_of(network, made) if not name.endswith(".step")]
    assert plan.checkpoint_bytes(model, algorithm) == sum(4 * tensor.numel() for tensor in held)


def test_a_runs_tokens_are_those_that_it_trains_on() -> None:
    assert plan.run_tokens(Config("d", "r", steps=7, batch_tokens=2048)) == 7 * 2048
    ramp = OptimConfig(ramp_tokens=300_000)
    ramped = Config("d", "r", steps=20, batch_tokens=4 * 32_768, optim=ramp)
    windows = [ramped.sequences(step) for step in range(20)]
    assert windows[0] < windows[-1]
    assert plan.run_tokens(ramped) == 1024 * sum(windows)


@given(
    st.integers(1, 4096),
    st.integers(1, 2**40),
    st.sampled_from(["fp32", "bf16"]),
    st.sampled_from(["cpu", "cuda"]),
)
def test_the_micro_batch_is_the_largest_divisor_that_fits(
    rows: int, available: int, precision: str, device: str
) -> None:
    fits = [
        n
        for n in range(1, rows + 1)
        if rows % n == 0
        and n * GPT2.block_size <= plan.MOST_TOKENS
        and plan.memory_bytes(GPT2, n, precision, device) <= plan.SHARE[device] * available
    ]
    found = plan.largest_micro_batch(GPT2, rows, precision, device, available)
    assert found == (max(fits) if fits else None)


def test_memory_grows_with_the_micro_batch_and_shrinks_with_half_precision() -> None:
    sizes = [plan.memory_bytes(GPT2, n, "fp32", "cuda") for n in (1, 2, 4, 8)]
    assert sizes == sorted(set(sizes))
    assert plan.memory_bytes(GPT2, 8, "bf16", "cuda") < sizes[-1]
    assert sizes[0] > 16 * plan.parameters(GPT2)  # weights, gradients and two moments, 4 bytes each


def test_the_lectures_micro_batch_fits_its_card() -> None:
    """64 windows of 1,024 tokens in bf16 on an A100 of 80 GB, and 16 on one of 40 GB."""
    gpt2 = ModelConfig(vocab_size=50_304)
    assert plan.largest_micro_batch(gpt2, 512, "bf16", "cuda", 80 * 2**30) == 64
    assert plan.largest_micro_batch(gpt2, 512, "bf16", "cuda", 40 * 2**30) >= 16


MEASURE = """
import resource, sys
from contextlib import nullcontext
import torch
from overnight import checkpoint, machine
from overnight.config import ModelConfig, OptimConfig
from overnight.models import linear
from overnight.models.networks import build
from overnight.optim import optimizer
from overnight.world import World
from overnight.step import train_step

machine.keep_memory()
# With MKL's products the peak varies by up to 40% between processes (plan.py).
linear.use("onednn" if linear.has_onednn() else "mkl")
L, H, C, T, V, B = map(int, sys.argv[2:])
modern = {"architecture": "modern", "bias": False, "activation": "relu2"}
kind, algorithm = (modern, "muon") if sys.argv[1] == "modern" else ({}, "adamw")
model = build(ModelConfig(L, H, C, T, V, **kind), V).init_weights(1)
optimizer = optimizer(model, OptimConfig(algorithm=algorithm), World(torch.device("cpu")))
scaler, copies = torch.amp.GradScaler("cpu", enabled=False), []
for _ in range(3):
    batches = [(torch.randint(V, (B, T)), torch.randint(V, (B, T))) for _ in range(2)]
    train_step(model, optimizer, scaler, batches, 2, 1e-3, 1.0, nullcontext)
    if not copies:  # what saving.py keeps from the first checkpoint on
        copies = [tensor.detach().clone() for _, _, tensor in checkpoint.tensors_of(model, optimizer)]
if sys.platform == "darwin":
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
else:  # ru_maxrss begins with the size of the process that started this one
    print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if "VmHWM" in line))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process's peak memory")
@pytest.mark.parametrize(
    ("sizes", "architecture"),
    [
        ((6, 6, 384, 256, 66, 32), "gpt2"), ((2, 4, 128, 64, 50257, 16), "gpt2"),
        ((12, 12, 768, 64, 50257, 2), "gpt2"), ((6, 3, 384, 256, 66, 32), "modern"),
        ((12, 6, 768, 64, 50257, 2), "modern"),
    ],
)  # fmt: skip
def test_memory_on_a_cpu_is_within_a_quarter_of_what_is_measured(
    sizes: tuple[int, ...], architecture: str
) -> None:
    """Much in activations, much in logits, much in weights: a real process's peak."""
    command = [sys.executable, "-c", MEASURE, architecture, *map(str, sizes)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    kind = MODERN if architecture == "modern" else {}
    predicted = plan.memory_bytes(ModelConfig(*sizes[:5], **kind), sizes[5], "fp32", "cpu")
    assert predicted == pytest.approx(measured, rel=0.25)
