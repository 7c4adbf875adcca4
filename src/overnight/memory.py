"""Out of memory, with the micro-batch that would fit."""

import contextlib
import re
from collections.abc import Iterator

import torch

from overnight import plan
from overnight.config import Config
from overnight.errors import Failure
from overnight.terminal import size
from overnight.world import device_memory


@contextlib.contextmanager
def clear_memory_errors(config: Config, device: torch.device) -> Iterator[None]:
    """Turn an allocation that failed, on the device or the host, into two lines with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise Failure(
            f"out of memory on {device} with --micro-batch {config.micro_batch} ({first_line(error)}).",
            remedy(config, device),
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's own error, the host allocator's, or Python's."""
    host = "can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(re.search(host, str(error)))


def first_line(error: BaseException) -> str:
    """What was asked for, from a message of many lines."""
    text = str(error).strip() or type(error).__name__
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMG]iB))", text)
    return f"tried to allocate {asked[1]}" if asked else text.splitlines()[0][:100]


def remedy(config: Config, device: torch.device) -> str:
    """The largest smaller micro-batch that should fit, or what else to do."""
    assert isinstance(config.micro_batch, int)
    shards = config.processes if config.parallel == "fsdp" else 1

    def needs(micro_batch: int) -> int:
        return plan.memory_bytes(config.model, micro_batch, config.precision, device.type, shards)

    # Where the arithmetic finds that all fits, something else is there too: a tenth less, at least.
    most = 0.9 * needs(config.micro_batch) / plan.SHARE[device.type]
    room = min(device_memory(device, config.processes), most)
    rows = config.batch_tokens // (config.model.block_size * config.processes)
    fits = plan.largest_micro_batch(config.model, rows, config.precision, device.type, room, shards)
    if fits is None:
        return "Not even one window fits: give --parallel fsdp on more --processes, or a smaller model."
    return (
        f"Give --micro-batch {fits} ({size(needs(fits))} by `overnight plan`): a step stays "
        f"{config.batch_tokens:,} tokens, and a run that exists goes on."
    )
