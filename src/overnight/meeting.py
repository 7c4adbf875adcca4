"""Where the ranks of a run find one another: the store in which they leave their addresses, and a count for
each by which the others see that it lives.

The agent that started them says where that is (rendezvous.py); under somebody else's torchrun, or started by
hand, it is MASTER_ADDR and MASTER_PORT.
"""

import mmap
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

MEETING = "OVERNIGHT_MEETING"  # file:FOLDER or tcp:HOST:PORT/ROUND
STORE, BEATS = "store", "beats"  # files in that folder
MOST_RANKS = 1024  # of one machine
START = timedelta(minutes=30)  # for the last rank to come

Exchange = Callable[[], list[int]]
"""Count one beat of this rank; the counts of all ranks."""


def is_known() -> bool:
    """Whether an agent of ours says where to meet."""
    return MEETING in os.environ


def make_folder(folder: Path) -> str:
    """A folder for the ranks of one machine to meet in; what to set MEETING to."""
    folder.mkdir(mode=0o700)
    (folder / BEATS).write_bytes(bytes(8 * MOST_RANKS))  # now, while there is room
    return f"file:{folder}"


def store() -> dist.Store:
    """The ranks' store."""
    kind, place = place_of_ranks()
    if kind == "file":
        found: dist.Store = dist.FileStore(str(Path(place) / STORE), -1)
    else:
        found = connected(place, START)
    found.set_timeout(START)
    return found


def beats(rank: int, size: int, timeout: timedelta) -> tuple[Exchange, list[str]]:
    """A rank's heartbeat, and the hosts of all ranks. timeout: for the store, whose host may be lost."""
    kind, place = place_of_ranks()
    if kind == "file":
        return in_file(Path(place) / BEATS, rank, size), [socket.gethostname()] * size
    own = connected(place, timeout)  # a connection of its own: a store serves one thread at a time
    own.set(f"host/{rank}", socket.gethostname())
    return in_store(own, rank, size), [
        own.get(f"host/{other}").decode("utf-8", "replace") for other in range(size)
    ]


def place_of_ranks() -> tuple[str, str]:
    if is_known():
        kind, _, place = os.environ[MEETING].partition(":")
        return kind, place
    return "tcp", f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def connected(place: str, timeout: timedelta) -> dist.Store:
    """A connection to the store at HOST:PORT, or to what of it belongs to a round: HOST:PORT/ROUND."""
    address, _, round_ = place.partition("/")
    host, _, port = address.rpartition(":")
    tcp = dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(f"round/{round_}", tcp) if round_ else tcp


def in_store(store: dist.Store, rank: int, size: int) -> Exchange:
    """Counts in a store. Adding 0 reads a count, and unlike `get` does not wait for one."""
    return lambda: [store.add(f"beat/{other}", int(other == rank)) for other in range(size)]


def in_file(path: Path, rank: int, size: int) -> Exchange:
    """Counts in a file that the ranks of one machine share in memory, so that a full disk does not matter."""
    with open(path, "r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def exchange() -> list[int]:
        counts[rank] += 1
        return counts[:size].tolist()

    return exchange
