"""What a model costs: parameters, FLOPs, memory, and the peaks of known hardware."""

import re

import torch

from overnight.config import ModelConfig
from overnight.machine import memory

# Dense bf16 peaks in FLOP/s from the vendors' data sheets (no sparsity); fp16's are the same.
# Keys are patterns of whole names: a Ti, a laptop's chip or a PCIe card has another peak.
BF16_PEAKS = {
    r"\bA100\b": 312e12,
    r"\bH100\b(?!.*(PCIe|NVL))": 989e12,
    r"\bH200\b(?!.*NVL)": 989e12,
    r"\bL40S\b": 362e12,
    r"RTX 4090$": 165e12,
    r"RTX 3090$": 71e12,
}
FP16_PEAKS = BF16_PEAKS | {r"\bV100\b": 125e12, r"\bT4$": 65e12}
UNTOLD = 8 * 2**30  # bytes of memory to count on where the system does not tell
MEMORY_SHARE = 0.6  # of a device's memory that `--micro-batch auto` plans with


def parameters(model: ModelConfig) -> int:
    """Numbers in the model, the tied head counted once."""
    C, L = model.n_embd, model.n_layer
    assert isinstance(model.vocab_size, int)
    biases = (3 * C + C + 4 * C + C + 2 * C) * L + C if model.bias else 0  # projections; norms, ln_f
    return (model.vocab_size + model.block_size) * C + (12 * C * C + 2 * C) * L + C + biases


def flops_per_token(model: ModelConfig) -> float:
    """Forward and backward: 6 N + 12 L C T, with N all parameters but the position embedding, and attention
    counted in full, not causally (nanoGPT's convention; PaLM's appendix B)."""
    n = parameters(model) - model.block_size * model.n_embd
    return 6 * n + 12 * model.n_layer * model.n_embd * model.block_size


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak for `precision` in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    peaks = {"bf16": BF16_PEAKS, "fp16": FP16_PEAKS}.get(precision, {})
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in peaks.items() if re.search(known, name)), None)


def memory_bytes(model: ModelConfig, micro_batch: int, half: bool) -> int:
    """A coarse bound on what a training step needs: weights, gradients, two moments; activations; logits."""
    C, L = model.n_embd, model.n_layer
    assert isinstance(model.vocab_size, int)
    width = 2 if half else 4
    kept = 20 if model.dropout == 0 else 24  # numbers of size C kept a token and layer for the backward pass
    logits = model.vocab_size * (12 + (width if half else 0))
    scores = 3 * width * L * model.n_head * model.block_size if model.attention == "manual" else 0
    per_token = L * C * kept * width + logits + scores
    return 16 * parameters(model) + micro_batch * model.block_size * per_token


def device_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes that one rank can count on."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return (memory() or UNTOLD) // ranks_here


def largest_micro_batch(model: ModelConfig, rows: int, half: bool, available: int) -> int:
    """The largest divisor of `rows` (a rank's windows of a step) that fits in memory; 1 at least."""
    budget = available * MEMORY_SHARE
    fits = [n for n in range(1, rows + 1) if rows % n == 0 and memory_bytes(model, n, half) <= budget]
    return max(fits, default=1)
