"""Known GPUs: found by the driver's name and by a user's."""

import pytest

from overnight import hardware
from overnight.errors import UserError


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA L40S", "bf16", 362e12),
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
def test_a_gpus_peak_is_its_own_or_not_known(name: str, precision: str, peak: float | None) -> None:
    """MFU is null where the peak is unknown: a peak of a card with a similar name would be a lie."""
    assert hardware.peak(name, precision) == peak


@pytest.mark.parametrize("name", ["H100", "h100", "A100-80GB", "a100 80gb", "rtx4090", "T4"])
def test_a_card_is_found_however_its_name_is_written(name: str) -> None:
    wanted = name.lower().replace("-", "").replace(" ", "")
    assert hardware.named(name).name.lower().replace(" ", "") == wanted


def test_an_unknown_card_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown GPU 'H300'\. .*Known are A100 40GB, .*T4"):
        hardware.named("H300")
