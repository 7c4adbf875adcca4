"""Pieces of text -> token ids in worker processes, in the order in which they came.

Each worker has a pipe of its own and a thread here that feeds it. So a worker that is killed (by the system,
when memory runs out) is noticed at once and harms no other: it is replaced, and gets its batch again.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import numpy as np

from overnight.data import fast, tokens
from overnight.data.manifest import TOKENIZER
from overnight.errors import Failure
from overnight.machine import signal_name

T = TypeVar("T")
Batch = list[tuple[bool, bool, str]]  # (first piece of a document?, validation?, text)
Encoded = list[tuple[bool, bool, np.ndarray]]  # the same with token ids in place of text

TRIES = 3  # workers that may be killed over the same batch
READY = "ready"


def work(pipe: Any, described: dict[str, Any]) -> None:
    """A worker process: the answer to a batch is the ids, or the error that encoding raised."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the parent, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    encode = fast.encoder(tokens.from_json(described, TOKENIZER))
    pipe.send(READY)
    while True:
        try:
            batch = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send([(first, validation, encode(text)) for first, validation, text in batch])
        except Exception as error:
            pipe.send(error)


def end_with_parent() -> None:
    """A parent that is killed cannot end its workers; they end themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def signals_for_the_parent() -> Iterator[None]:
    """Processes that start in here never hear Ctrl-C: not even before they can say that they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, and it unblocks the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A worker process, started again when it was killed. Used by one thread at a time."""

    def __init__(self, described: dict[str, Any]):
        self._described = described
        self._process: Any = None
        self._pipe: Any = None
        self._stopped = threading.Event()

    def encode(self, batch: Batch) -> Encoded:
        """The answer to a batch. Raises what encoding raised, or Failure where TRIES workers were killed."""
        for _ in range(TRIES):
            try:
                return self._ask(batch)
            except (EOFError, OSError):  # the pipe has ended, and the process with it
                if self._process is None:  # it could not be started
                    raise
                self._process.join()
                code = self._process.exitcode
                self._process = None
                if self._stopped.is_set():
                    break
        how = f"were killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        why = " (the system does that when memory runs out)" if code == -signal.SIGKILL else ""
        raise Failure(f"{TRIES} worker processes in a row {how}{why}: try fewer --workers.")

    def _ask(self, batch: Batch) -> Encoded:
        if self._process is None:
            self._start()
        self._pipe.send(batch)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> None:
        # Spawned, not forked: forking a process that has threads can hang, and Windows and macOS cannot.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._described), daemon=True)
        with STARTING, signals_for_the_parent():
            process.start()
        self._process = process
        theirs.close()  # now the process alone has that end
        if self._stopped.is_set():
            self._process.kill()
        self._pipe.recv()

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._stopped.set()
        if (process := self._process) is not None:
            process.kill()

    def join(self) -> None:
        """Wait for the end of the process, after `stop`."""
        if self._process is not None:
            self._process.join()


STARTING = threading.Lock()  # a process that starts while another one does would inherit its pipe


def in_order(
    batches: Iterator[tuple[T, Batch]], tokenizer: tokens.Tokenizer, workers: int
) -> Iterator[tuple[T, Encoded]]:
    """Encode batches in `workers` processes; results come in the order of the batches, a few in flight, each
    with what came with its batch."""
    described, mine = tokenizer.to_json(), threading.local()
    all_of: list[Worker] = []

    def hire() -> None:
        mine.worker = Worker(described)
        all_of.append(mine.worker)

    def encode(batch: Batch) -> Encoded:
        return mine.worker.encode(batch)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode", initializer=hire)
    waiting: deque[tuple[T, Future[Encoded]]] = deque()
    try:
        for label, batch in batches:
            waiting.append((label, pool.submit(encode, batch)))
            if len(waiting) > workers + 2:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in all_of:
            worker.stop()
        pool.shutdown(wait=True)
        for worker in all_of:
            worker.join()
