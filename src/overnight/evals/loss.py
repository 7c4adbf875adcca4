"""Validation loss and bits per byte: exact, over fixed tokens, the same on any number of ranks."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from overnight.data.loader import to_device
from overnight.data.shards import Tokens
from overnight.errors import Abandoned
from overnight.models.networks import Network
from overnight.world import World

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 65_536, "mps": 16_384}  # few shapes: full batches, and what is left


@torch.no_grad()
def validation(
    model: Network,
    tokens: Tokens,
    byte_lengths: np.ndarray,
    block_size: int,
    limit: int | None,
    world: World,
    autocast: Callable[[], AbstractContextManager],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[str, float]]:
    """Yields ("loss", nats per token), ("bits_per_byte", ...) and ("tokens", number predicted).

    Windows of T = block_size start at 0, T, 2T, ...: inputs [i, i+T), targets [i+1, i+T+1), the last one
    shorter, so that every token but the first is predicted exactly once; with a `limit`, the first `limit`
    predictions. byte_lengths: UTF-8 bytes of each id, 0 for <|endoftext|>. progress: called with the windows
    that are done, and all; where it returns something true, on any rank, all ranks raise Abandoned.
    """
    predicted = min(len(tokens) - 1, limit or len(tokens))
    starts = range(0, predicted, block_size)
    rows = max(1, TOKENS_AT_ONCE[world.device.type] // block_size)
    device, summed_bytes = world.device, 0
    # On the device, so that the host reads the next windows meanwhile; MPS has no float64.
    summed_loss = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    was_training, stopped = model.training, False
    model.eval()
    for number in range(world.rank, math.ceil(len(starts) / rows), world.size):
        chunk = starts[number * rows : (number + 1) * rows]
        if stopped := bool(progress(number * rows, len(starts))):
            break
        full = [start for start in chunk if start + block_size <= predicted]
        for group in ([full] if full else []) + [[start] for start in chunk[len(full) :]]:
            length = min(block_size, predicted - group[0])
            window = np.stack([tokens.read(start, length + 1) for start in group])  # (B, T + 1)
            ids = to_device(torch.from_numpy(window), device)
            with autocast():
                losses = model.token_losses(ids[:, :-1], ids[:, 1:])  # (B, T)
            summed_loss += losses.to(summed_loss.device).double().sum()
            summed_bytes += int(byte_lengths[window[:, 1:]].sum())
    model.train(was_training)
    if world.any(stopped):
        raise Abandoned
    loss, bytes_ = world.sum(torch.stack([summed_loss, torch.full_like(summed_loss, summed_bytes)])).tolist()
    yield "loss", loss / predicted
    yield "bits_per_byte", loss / bytes_ / math.log(2) if bytes_ else math.inf
    yield "tokens", predicted
