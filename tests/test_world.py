"""What a process sets up before it computes."""

import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from overnight import heartbeat, meeting, world


def test_denormal_numbers_are_zero_inside_only() -> None:
    tiny = torch.full((4,), 1e-39)
    with world.connect("cpu"):
        assert not (tiny * 1.0).any()
    assert (tiny * 1.0).all()


def test_no_thread_is_inside_the_store_when_a_heartbeat_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came back from there at the end of the process would abort it."""
    server, asked = dist.TCPStore("localhost", 0, is_master=True), threading.Event()

    class Slow(dist.TCPStore):
        def add(self, key: str, amount: int) -> int:
            asked.set()
            time.sleep(0.3)
            return super().add(key, amount)

    monkeypatch.setattr(dist, "TCPStore", Slow)
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    with heartbeat.heartbeat(0, *meeting.beats(0, 1, timedelta(seconds=10))):
        assert asked.wait(60)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("heartbeat")]


FAULTS = """
import resource, torch
from overnight import machine
from overnight.config import ModelConfig
from overnight.models.gpt2 import GPT

machine.keep_memory()
model = GPT(ModelConfig(2, 4, 256, 128, 256), 256).init_weights(1)
ids = torch.randint(256, (128, 128))
for step in range(8):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(ids, ids).backward()
    model.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_steps_find_the_memory_of_those_before() -> None:
    """Pages that the system has to fill in four steps with activations of 64 MB: hundreds of thousands, of
    which a few stay while the heap finds its form."""

    def faults(program: str) -> int:
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert faults(FAULTS) < faults(FAULTS.replace("machine.keep_memory()", "")) / 4
