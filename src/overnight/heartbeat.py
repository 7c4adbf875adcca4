"""Notices that another rank is lost where no connection says so: its host gone, its cable out, it stopped.

A rank that dies closes its connections and the others fail at once. One that falls silent leaves them waiting
in a collective, for as long as the backend is patient (gloo: 30 minutes).
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from overnight.errors import FAILURE
from overnight.stop import leave

EVERY = 2.0  # seconds between two beats
SILENCE = 40.0  # seconds without one after which a rank is lost
PATIENCE = 5.0  # seconds for the last question to the store, whose host may be gone


@contextlib.contextmanager
def heartbeat(rank: int, size: int) -> Iterator[None]:
    """Beat, and listen to the others, in threads of their own as long as the `with` lasts. Where one of them
    has fallen silent this process says which and ends, as torchrun expects of a rank that cannot go on."""
    over = threading.Event()
    # A connection of its own: a store serves one thread at a time.
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=SILENCE))
    store.set(f"host/{rank}", socket.gethostname())
    hosts = [store.get(f"host/{other}").decode() for other in range(size)]
    heard = [time.monotonic()] * size

    def beat() -> None:
        counts = [0] * size
        while not over.wait(EVERY):
            for other in range(size):
                try:  # adding 0 reads a count, and unlike `get` does not wait for one
                    count = store.add(f"beat/{other}", 1 if other == rank else 0)
                except Exception:  # the store is gone with its host: silence, too
                    break
                if count != counts[other]:
                    counts[other], heard[other] = count, time.monotonic()

    def listen() -> None:
        while not over.wait(EVERY / 2):
            for other, last in enumerate(heard):
                if other != rank and time.monotonic() - last > SILENCE and not over.is_set():
                    what = f"rank {other} on {hosts[other]} has not been heard of for {SILENCE:.0f} s"
                    leave(FAILURE, f"{what}, so rank {rank} ends.")

    threads = [
        threading.Thread(target=work, name=f"heartbeat {work.__name__}", daemon=True)
        for work in (beat, listen)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        # A thread that comes back from the store while the interpreter ends aborts the process (SIGABRT).
        for thread in threads:
            thread.join(PATIENCE)
