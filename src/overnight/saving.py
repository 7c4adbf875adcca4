"""Checkpoints written in the background: training waits for a copy in memory only."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from overnight import checkpoint
from overnight.checkpoint import State
from overnight.parallel import whole

AGAIN_AFTER = 30.0  # seconds from a save that failed to the next try
PATIENCE = 60.0  # seconds that the last save of a process is tried again


class Saver:
    """Copies what a checkpoint holds, and publishes the copy in a thread, one checkpoint at a time.

    The copy's memory (12 bytes a parameter, pinned for CUDA) is kept from save to save. `before` is called in
    the thread before a checkpoint is written: it syncs the records that the checkpoint vouches for.
    """

    def __init__(self, run: Path, keep: int, before: Callable[[State], None]):
        self.run, self.keep, self.before = run, keep, before
        self.error: OSError | None = None
        """Why the last save failed, until it has been tried again with success."""
        self._copies: dict[str, dict[str, Tensor]] = {checkpoint.WEIGHTS: {}, checkpoint.OPTIMIZER: {}}
        self._state: State | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver", initializer=step_back)
        self._job: Future[Path] | None = None
        self._again_at = 0.0

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State | None) -> None:
        """Begin to save; the save before this must have been collected. Every rank of a sharded model takes
        part; where state is None, only in that."""
        assert self._job is None
        for file, name, tensor in checkpoint.tensors_of(model, optimizer):
            full = whole(tensor.detach())
            if state is not None:
                if name not in self._copies[file]:
                    self._copies[file][name] = torch.empty(full.shape, pin_memory=full.is_cuda)
                self._copies[file][name].copy_(full, non_blocking=full.is_cuda)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are there, and the tensors may change again
        self._state = state
        self.try_again()

    def try_again(self) -> None:
        """Publish the copy (again)."""
        if self._state is not None:
            self._job = self._thread.submit(self._publish, self._state)

    def collect(self, wait: bool = False) -> State | None:
        """The state of the checkpoint that has been published since the last call; None where there is none
        (yet: with `wait` it is waited for). Raises the OSError of a save that failed, which is tried again
        after a while."""
        if self._job is None and self.error and time.monotonic() > self._again_at:
            self.try_again()
        if self._job is None or not (wait or self._job.done()):
            return None
        job, self._job = self._job, None
        try:
            job.result()
        except OSError as error:
            self.error, self._again_at = error, time.monotonic() + AGAIN_AFTER
            raise
        self.error = None
        return self._state

    def close(self) -> None:
        """Let a checkpoint in the making be finished, whatever else went wrong."""
        self._thread.shutdown(wait=True)

    def _publish(self, state: State) -> Path:
        self.before(state)
        path = checkpoint.publish(
            self.run, self._copies[checkpoint.WEIGHTS], self._copies[checkpoint.OPTIMIZER], state
        )
        checkpoint.prune(self.run, self.keep)
        return path


def step_back() -> None:
    """Let this thread run where training leaves the processors idle, as far as the system can say so."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
