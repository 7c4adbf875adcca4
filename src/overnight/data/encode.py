"""Pieces of text -> token ids in worker processes, in the order in which they came."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np

from overnight.data import fast, tokens
from overnight.data.manifest import TOKENIZER
from overnight.errors import Failure

T = TypeVar("T")
Batch = list[tuple[bool, bool, str]]  # (first piece of a document?, validation?, text)
Encoded = list[tuple[bool, bool, np.ndarray]]  # the same with token ids in place of text

_encode: fast.Encode  # of a worker process


def begin_worker(described: dict[str, Any]) -> None:
    global _encode
    threading.Thread(target=end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the parent, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    _encode = fast.encoder(tokens.from_json(described, TOKENIZER))


@contextlib.contextmanager
def signals_for_the_parent() -> Iterator[None]:
    """Processes that start in here never hear Ctrl-C: not even before they can say that they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """A parent that is killed cannot end its workers; they end themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def encode_batch(batch: Batch) -> Encoded:
    return [(first, validation, _encode(text)) for first, validation, text in batch]


def finished(label: T, future: Future[Encoded]) -> tuple[T, Encoded]:
    return label, future.result()


def in_order(
    batches: Iterator[tuple[T, Batch]], tokenizer: tokens.Tokenizer, workers: int
) -> Iterator[tuple[T, Encoded]]:
    """Encode batches in `workers` processes; results come in the order of the batches, a few in flight, each
    with what came with its batch."""
    # Spawned, not forked: forking a process that has threads can hang, and Windows and macOS cannot.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=begin_worker, initargs=(tokenizer.to_json(),)
    )
    waiting: deque = deque()
    with signals_for_the_parent():
        pool.submit(int)  # the first task starts the workers
    try:
        for label, batch in batches:
            waiting.append((label, pool.submit(encode_batch, batch)))
            if len(waiting) > workers + 2:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())
    except BrokenProcessPool:
        raise Failure("a worker process died (out of memory, perhaps): try fewer --workers.") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
