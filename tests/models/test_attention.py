"""Which attention kernel is taken: the timing needs a GPU, the choice does not."""

from dataclasses import replace

import pytest
import torch
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend

from overnight.config import Config, ModelConfig, TrainConfig
from overnight.models import attention

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
CONFIG = Config("d", "r", 5, 64, micro_batch=1, precision="bf16", model=ModelConfig(2, 2, 32, 16, 64))


@pytest.fixture
def active(monkeypatch):
    """Packages that are 'installed': FA3 alone. What is active at the time is kept."""
    now: list[str] = []

    def activate(name):
        if name != "FA3":
            raise ImportError(name)
        now.append(name)

    monkeypatch.setattr(torch_attention, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(torch_attention, "restore_flash_attention_impl", now.clear)
    return now


@pytest.fixture
def takes(monkeypatch, active):
    """`takes(flash=2.0, ...)`: the milliseconds of each kernel; those not named refuse."""

    def arrange(**milliseconds):
        def timed(backend, *_):
            name = next(name for name, one in attention.BACKENDS.items() if one == backend)
            return milliseconds.get("".join(active) or name)

        monkeypatch.setattr(attention, "timed", timed)

    return arrange


def order():
    """What torch tries, and may use, now."""
    allowed = torch_attention._cur_sdpa_kernel_backends(with_priority=True)
    return [backend for backend in allowed if backend != SDPBackend.OVERRIDEABLE]


@pytest.mark.parametrize(
    ("milliseconds", "best", "first"),
    [
        ({"cudnn": 1.0, "flash": 2.0, "efficient": 3.0}, "cudnn", SDPBackend.CUDNN_ATTENTION),
        ({"flash": 2.0, "efficient": 3.0}, "flash", SDPBackend.FLASH_ATTENTION),
        ({"efficient": 3.0}, "efficient", SDPBackend.EFFICIENT_ATTENTION),
        ({"cudnn": 1.0, "flash": 2.0, "FA3": 0.5}, "FA3", SDPBackend.FLASH_ATTENTION),
    ],
    ids=str,
)
def test_the_fastest_comes_first_for_as_long_as_it_lasts(takes, active, milliseconds, best, first):
    takes(**milliseconds)
    before = order()
    with attention.fastest(CONFIG, CUDA) as name:
        assert name == best
        assert order()[0] == first
        assert order()[-1] == SDPBackend.MATH, "whatever the others refuse"
        assert active == (["FA3"] if best == "FA3" else [])
    assert order() == before
    assert not active


@pytest.mark.parametrize(
    ("config", "device"),
    [
        (CONFIG, CPU),
        (replace(CONFIG, precision="fp32"), CUDA),
        (replace(CONFIG, deterministic=True), CUDA),
        (replace(CONFIG, model=replace(CONFIG.model, attention="manual")), CUDA),
        (replace(CONFIG, train=TrainConfig(attention_kernel="default")), CUDA),
    ],
    ids=["cpu", "fp32", "deterministic", "manual", "default"],
)
def test_elsewhere_torch_decides(takes, config, device):
    takes(cudnn=1.0)
    before = order()
    with attention.fastest(config, device) as name:
        assert name is None
        assert order() == before


def test_where_all_refuse_torch_decides(takes):
    takes()
    with attention.fastest(CONFIG, CUDA) as name:
        assert name is None
