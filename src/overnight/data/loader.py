"""Batches on their way to the device: the next micro-batch is read while this one is computed."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.profiler import record_function

from overnight.data.batches import Batches
from overnight.world import World


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; on CUDA by way of pinned memory, so that the host does not wait for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class Loader:
    """One rank's micro-batches, read a micro-step ahead by a thread; in pinned memory on CUDA, so that
    the copy to the GPU does not wait."""

    def __init__(self, batches: Batches, micro_batch: int, world: World):
        self.batches, self.micro_batch, self.world = batches, micro_batch, world
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[tuple[int, int], Future] | None = None

    def micro_steps(self, step: int) -> int:
        """Gradient accumulation: micro-batches of a rank in `step`."""
        return self.batches.sequences(step) // (self.micro_batch * self.world.size)

    def at(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, each (micro_batch, T) int64 on the device, for each micro-step of `step`."""
        count = self.micro_steps(step)
        for micro_step in range(count):
            following = (step, micro_step + 1) if micro_step + 1 < count else (step + 1, 0)
            with record_function("data"):
                pair = self._take(step, micro_step)
                self._ahead = following, self._reader.submit(self._read, *following)
                inputs, targets = (one.to(self.world.device, non_blocking=True) for one in pair)
            yield inputs, targets

    def _take(self, step: int, micro_step: int) -> tuple[Tensor, Tensor]:
        if self._ahead and self._ahead[0] == (step, micro_step):
            return self._ahead[1].result()
        return self._reader.submit(self._read, step, micro_step).result()

    def _read(self, step: int, micro_step: int) -> tuple[Tensor, Tensor]:
        rank, ranks = self.world.rank, self.world.size
        pair = self.batches.at(step, micro_step, self.micro_batch, rank, ranks)
        inputs, targets = (torch.from_numpy(array) for array in pair)
        if self.world.device.type == "cuda":
            return inputs.pin_memory(), targets.pin_memory()
        return inputs, targets

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
