"""Which of torch's attention kernels a GPU shall use: the one that is fastest at the run's own shape.

torch tries them in a fixed order. On some cards cuDNN's, or FlashAttention 3 and 4 (packages of their own,
which torch 2.11 can be told to use), are faster than the FlashAttention 2 inside torch; on others they are
not there. So each is timed, forward and backward, before the first step.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn import attention
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from overnight.config import Config

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PACKAGES = ("FA3", "FA4")  # other people's kernels in the place of torch's own "flash"
ROUNDS = 10


@contextlib.contextmanager
def fastest(config: Config, device: torch.device) -> Iterator[str | None]:
    """In here F.scaled_dot_product_attention prefers the fastest kernel, whose name is yielded: "cudnn",
    "flash", "efficient", "FA3" or "FA4".

    None, and torch's own order, elsewhere than on CUDA in bf16 or fp16, with --deterministic, with
    --train.attention-kernel default, and where attention is spelt out.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    if (
        device.type != "cuda"
        or half is None
        or config.deterministic
        or config.model.attention != "flash"
        or config.train.attention_kernel == "default"
    ):
        yield None
        return
    found = {name: timed(backend, config, device, half) for name, backend in BACKENDS.items()}
    for package in PACKAGES:
        with contextlib.suppress(Exception), activated(package):  # not installed, or not for this card
            found[package] = timed(SDPBackend.FLASH_ATTENTION, config, device, half)
    milliseconds = {name: took for name, took in found.items() if took is not None}
    if not milliseconds:
        yield None
        return
    best = min(milliseconds, key=milliseconds.__getitem__)
    # Those behind it take what it refuses: masks, other sizes.
    order = [BACKENDS.get(best, SDPBackend.FLASH_ATTENTION), SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with (
        activated(best) if best in PACKAGES else contextlib.nullcontext(),
        attention.sdpa_kernel(list(dict.fromkeys(order)), set_priority=True),
    ):
        yield best


@contextlib.contextmanager
def activated(package: str) -> Iterator[None]:
    """In here "flash" is another package's."""
    attention.activate_flash_attention_impl(package)
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()


def timed(
    backend: SDPBackend, config: Config, device: torch.device, dtype: torch.dtype, rounds: int = ROUNDS
) -> float | None:
    """Milliseconds of a forward and backward pass with one kernel; None where it refuses."""
    model = config.model
    assert isinstance(config.micro_batch, int)
    shape = (config.micro_batch, model.block_size, 3 * model.n_head, model.n_embd // model.n_head)
    # As GPT-2 lays them out: strided views of one product.
    qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    try:
        with attention.sdpa_kernel(backend):
            for number in range(-2, rounds):
                if number == 0:
                    began.record()
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=model.dropout, is_causal=True)
                torch.autograd.grad(y, qkv, y)
            ended.record()
        ended.synchronize()
    except RuntimeError:  # "No available kernel": not for this card, type or size
        return None
    return began.elapsed_time(ended) / rounds
