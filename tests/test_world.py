"""What a process sets up before it computes."""

import subprocess
import sys

import pytest
import torch

from overnight import world


def test_denormal_numbers_are_zero_inside_only():
    tiny = torch.full((4,), 1e-39)
    with world.connect("cpu"):
        assert not (tiny * 1.0).any()
    assert (tiny * 1.0).all()


FAULTS = """
import resource, torch
from overnight import machine
machine.keep_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_the_systems_help():
    """64 MB in fresh pages would be 16,384 faults, or 32 with huge pages."""

    def faults(program: str) -> int:
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert faults(FAULTS) < 16 < faults(FAULTS.replace("machine.keep_memory()", ""))
