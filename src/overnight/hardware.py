"""Known GPUs: peak rates and memory; what suits a kind of device.

No torch here: `overnight plan` speaks of cards that are elsewhere.
"""

import re
from dataclasses import dataclass

from overnight.errors import UserError, near

GB = 2**30  # memory is sold in powers of two


@dataclass(frozen=True)
class Gpu:
    """A card as its vendor's data sheet has it."""

    name: str
    pattern: str
    """Finds the card in the driver's name for it. A Ti, a laptop's chip or a PCIe card has another peak."""
    precision: str
    """What its matrix units are used with: bf16, or fp16 on cards that lack it."""
    peak: float
    """FLOP/s in that precision, dense (no sparsity). Cards with bf16 have the same peak in fp16."""
    memory: int
    """Bytes."""


GPUS = (
    Gpu("A100 40GB", r"\bA100\b.*\b40GB", "bf16", 312e12, 40 * GB),
    Gpu("A100 80GB", r"\bA100\b", "bf16", 312e12, 80 * GB),
    Gpu("H100", r"\bH100\b(?!.*(PCIe|NVL))", "bf16", 989e12, 80 * GB),
    Gpu("H200", r"\bH200\b(?!.*NVL)", "bf16", 989e12, 141 * GB),
    Gpu("L40S", r"\bL40S\b", "bf16", 362e12, 48 * GB),
    Gpu("RTX 4090", r"RTX 4090$", "bf16", 165e12, 24 * GB),
    Gpu("RTX 3090", r"RTX 3090$", "bf16", 71e12, 24 * GB),
    Gpu("V100 32GB", r"\bV100\b", "fp16", 125e12, 32 * GB),
    Gpu("T4", r"\bT4$", "fp16", 65e12, 16 * GB),
)


# Logits that a kind of device computes at a time (models/head.py): a CPU's shall stay near its caches, a
# GPU's products want thousands of rows.
LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**29, "mps": 2**27}


def rows_at_once(device: str, vocabulary: int) -> int:
    """Positions whose logits are computed together: a power of two, so that a GPU's tiles fit."""
    return 2 ** max(0, (LOGITS_AT_ONCE[device] // vocabulary).bit_length() - 1)


def padded(ids: int) -> int:
    """Rows of a vocabulary as a GPU's matrix units want them: the next multiple of 64."""
    return -(-ids // 64) * 64


def named(name: str) -> Gpu:
    """The card that a user means: "h100", "A100-80GB". Raises UserError for an unknown one."""
    wanted = re.sub(r"[\s_-]", "", name).lower()
    for gpu in GPUS:
        if re.sub(r"\s", "", gpu.name).lower() == wanted:
            return gpu
    names = [gpu.name for gpu in GPUS]
    raise UserError(f"unknown GPU '{name}'.{near(name, names)} Known are {', '.join(names)}.")


def peak(driver_name: str, precision: str) -> float | None:
    """FLOP/s of the card that the driver calls so; None where it, or a peak in `precision`, is not known."""
    for gpu in GPUS:
        if re.search(gpu.pattern, driver_name) and precision in {gpu.precision, "fp16"}:
            return gpu.peak
    return None
