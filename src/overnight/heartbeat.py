"""Notices that another rank is lost where no connection says so: its host gone, its cable out, it stopped.

A rank that dies closes its connections and the others fail at once. One that falls silent leaves them waiting
in a collective, for as long as the backend is patient (gloo: 30 minutes).
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from overnight.errors import FAILURE
from overnight.meeting import Exchange
from overnight.stop import leave

EVERY = 2.0  # seconds between two beats
SILENCE = 40.0  # seconds without one after which a rank is lost
PATIENCE = 5.0  # seconds for the last question to the store, whose host may be gone


@contextlib.contextmanager
def heartbeat(rank: int, exchange: Exchange, hosts: list[str]) -> Iterator[None]:
    """Beat, and listen to the others, in threads of their own as long as the `with` lasts. Where one of them
    has fallen silent this process says which and ends, as torchrun expects of a rank that cannot go on.

    A process that was itself stopped, or got no time to compute, heard nobody meanwhile: then all have the
    whole time again. (Slurm suspends and resumes all ranks of a job.)
    """
    over = threading.Event()
    silent = [0.0] * len(hosts)  # seconds, of those in which this process could have heard

    def beat() -> None:
        counts = [0] * len(hosts)
        while not over.wait(EVERY):
            try:
                now = exchange()
            except Exception:  # the store is gone with its host: silence, too
                continue
            for other, count in enumerate(now):
                if count != counts[other]:
                    silent[other] = 0.0
            counts = now

    def listen() -> None:
        last = time.monotonic()
        while not over.wait(EVERY / 2):
            passed, last = time.monotonic() - last, time.monotonic()
            if passed > max(2 * EVERY, SILENCE / 4):
                silent[:] = [0.0] * len(hosts)
                continue
            for other in range(len(hosts)):
                silent[other] += min(passed, EVERY)
                if other != rank and silent[other] > SILENCE and not over.is_set():
                    what = f"rank {other} on {hosts[other]} has not responded for {SILENCE:.0f} s"
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
