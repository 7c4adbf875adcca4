"""Checkpoints written in the background: training waits for a copy in memory only."""

import contextlib
import errno
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from overnight import checkpoint
from overnight.errors import Failure
from overnight.files import disk_problem, is_full
from overnight.journal import Journal
from overnight.lock import Lock
from overnight.machine import step_back
from overnight.parallel import whole
from overnight.state import State

AGAIN_AFTER = 30.0  # seconds from a save that failed to the next try
PATIENCE = 60.0  # seconds that the last save of a process is tried again


class Saver:
    """Copies what a checkpoint holds, and publishes the copy in a thread, one checkpoint at a time.

    The copy's memory (12 bytes a parameter, 8 of what is Muon's; pinned for CUDA) is kept from save to save.
    A save that fails, for whatever reason of the disk's, costs nothing: it is logged and tried again.
    """

    def __init__(self, run: Path, keep: int, journal: Journal, lock: Lock):
        self.run, self.keep, self.journal, self.lock = run, keep, journal, lock
        self._copies: dict[str, dict[str, Tensor]] = {checkpoint.WEIGHTS: {}, checkpoint.OPTIMIZER: {}}
        self._state: State | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver", initializer=step_back)
        self._job: Future[None] | None = None
        self._error: OSError | None = None  # of the last try, where that failed
        self._again_at = 0.0

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State | None) -> None:
        """Begin to save, as soon as the save before this is done. Every rank of a sharded model takes part;
        where state is None, only in that."""
        self.collect(wait=True)
        for file, name, tensor in checkpoint.tensors_of(model, optimizer):
            full = whole(tensor.detach())
            if state is not None:
                if name not in self._copies[file]:
                    self._copies[file][name] = torch.empty(full.shape, pin_memory=full.is_cuda)
                self._copies[file][name].copy_(full, non_blocking=full.is_cuda)
        if full.is_cuda:
            torch.cuda.synchronize()  # the copies are there, and the tensors may change again
        self._state = state
        self._submit()

    def collect(self, wait: bool = False) -> None:
        """Take note of what the thread has done meanwhile (with `wait`: of what it is doing), and after a
        while try again what it could not do."""
        if self._job is None and self._error and time.monotonic() > self._again_at:
            self._submit()
        if self._job is None or not (wait or self._job.done()):
            return
        self._finish()
        if self._error and self._state:
            self._again_at = time.monotonic() + AGAIN_AFTER
            self.journal.save_failed(self._state.step, self._error)

    def make_sure(self) -> None:
        """Wait until the checkpoint begun last is on the disk, trying for a while. Raises Failure."""
        self.collect(wait=True)
        until = time.monotonic() + PATIENCE
        while self._error:
            if time.monotonic() > until:
                again = "Mend that and run the same command again: it resumes from the checkpoint before."
                if self.lock.lost():
                    again = "The checkpoint before is in the folder that was moved: give that one as --run."
                raise Failure(f"the checkpoint was not saved: {disk_problem(self._error)}.", again)
            time.sleep(1)
            self.journal.make_folder_again(self.lock)
            self.journal.flush()  # the checkpoint vouches for records, and no new one takes those along
            self._submit()
            self._finish()

    def close(self) -> None:
        """Let a checkpoint in the making be finished, whatever else went wrong."""
        self._thread.shutdown(wait=True)

    def _submit(self) -> None:
        if self._state is not None:
            self._job = self._thread.submit(self._publish, self._state)

    def _finish(self) -> None:
        """Wait for the thread."""
        assert self._job is not None
        assert self._state is not None
        job, self._job, self._error = self._job, None, None
        try:
            job.result()
        except OSError as error:
            self._error = error
        else:
            self.journal.saved(self._state.step)

    def _publish(self, state: State) -> None:
        if self.lock.lost():
            problem = "the run was moved away, and another folder has its name"
            raise OSError(errno.ESTALE, problem, str(self.run))
        self.journal.sync(state)
        tensors = self._copies[checkpoint.WEIGHTS], self._copies[checkpoint.OPTIMIZER]
        try:
            checkpoint.publish(self.run, *tensors, state)
        except OSError as error:
            # A night is worth more than the checkpoints before the newest: but for the best they make room.
            if not (is_full(error) and checkpoint.prune(self.run, keep=1)):
                raise
            checkpoint.publish(self.run, *tensors, state)
        with contextlib.suppress(OSError):  # what could not be removed is removed the next time
            checkpoint.prune(self.run, self.keep)
