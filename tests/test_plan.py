"""Costs before spending anything: FLOPs, memory, peaks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overnight import plan
from overnight.config import ModelConfig
from overnight.models.gpt2 import GPT

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 8, 4, 10), (3, 2, 16, 32, 100)])
def test_parameters_are_counted_as_the_model_has_them(sizes: tuple[int, ...], bias: bool) -> None:
    config = ModelConfig(*sizes, bias=bias)
    assert plan.parameters(config) == sum(p.numel() for p in GPT(config, sizes[-1]).parameters())


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert plan.peak_flops(CPU, "fp32") is None
    assert plan.peak_flops(CPU, "bf16") is None


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("NVIDIA H100 80GB HBM3", "tf32", None),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("Tesla T4", "bf16", None),
        ("NVIDIA RTX A1000", "bf16", None),
        ("NVIDIA T400 4GB", "fp16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("A card of tomorrow", "bf16", None),
    ],
)
def test_a_gpus_peak_is_its_own_or_not_known(
    name: str, precision: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MFU is null where the peak is unknown: a peak of a card with a similar name would be a lie."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert plan.peak_flops(CUDA, precision) == peak


@given(st.integers(1, 4096), st.integers(1, 2**40), st.booleans())
def test_the_micro_batch_is_the_largest_divisor_that_fits(rows: int, available: int, half: bool) -> None:
    fits = [1] + [n for n in range(2, rows + 1) if plan.memory_bytes(GPT2, n, half) <= 0.6 * available]
    expected = max(n for n in fits if rows % n == 0)
    assert plan.largest_micro_batch(GPT2, rows, half, available) == expected


def test_memory_grows_with_the_micro_batch_and_shrinks_with_half_precision() -> None:
    sizes = [plan.memory_bytes(GPT2, n, half=False) for n in (1, 2, 4, 8)]
    assert sizes == sorted(set(sizes))
    assert plan.memory_bytes(GPT2, 8, half=True) < sizes[-1]
    assert sizes[0] > 16 * plan.parameters(GPT2)  # weights, gradients and two moments, 4 bytes each


def test_ranks_share_the_memory_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "memory", lambda: 32 * 2**30)
    assert plan.device_memory(CPU, 4) == 8 * 2**30
    monkeypatch.setattr(plan, "memory", lambda: None)
    assert plan.device_memory(CPU, 2) == 4 * 2**30
