"""The private folder where a launcher and the ranks on its machine meet: the word to stop, the ranks' file
store, their heartbeats.

It lies in the user's cache folder, which nothing cleans up while it is used, under a random name. One whose
launcher was killed is removed when the next one begins.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from overnight.files import open_new
from overnight.lock import try_lock
from overnight.private import cache_folder, temporary_folder

LAUNCHER = "launcher"  # the file that the launcher keeps locked; it says which process it is
HALF_MADE = 3600.0  # seconds after which a folder without that file was left by a kill


@contextlib.contextmanager
def launcher_folder(fill: Callable[[Path], object]) -> Iterator[Path]:
    """A new folder for this process and its ranks, removed at the end. fill: writes what has to be in it.
    Where the cache folder has no room, or its file system no locks, it lies in the temporary directory."""
    cache = cache_folder()
    remove_abandoned(cache)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(filled(cache, fill))
        except OSError:
            folder = stack.enter_context(filled(temporary_folder(), fill))
        yield folder


@contextlib.contextmanager
def filled(place: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    folder = place / f"{prefix()}{os.getpid()}-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    try:
        with open_new(folder / LAUNCHER) as alive:
            check_locks(folder)
            alive.write(f"{os.getpid()} {start_of(os.getpid())}".encode())
            alive.flush()
            try_lock(alive)  # the system gives it up when this process dies, and the ranks see that
            fill(folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_locks(folder: Path) -> None:
    """Raise OSError where the file system has no locks (`flock`), which torch's FileStore needs."""
    with contextlib.suppress(ImportError):  # Windows
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def prefix() -> str:
    """What the names of this machine's folders begin with: several may share a home."""
    return f"launch-{re.sub('[^A-Za-z0-9.]', '_', socket.gethostname())}-"


def remove_abandoned(cache: Path) -> None:
    """Remove the folders of launchers on this machine that were killed."""
    for folder in cache.glob(f"{prefix()}*-*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name.removeprefix(prefix()).split("-")[0])
            # Not of this process: looking at its lock would release it.
            if pid != os.getpid() and is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(folder: Path) -> bool:
    """Whether a folder's launcher is gone. Without the file there was no time to write it."""
    if (folder / LAUNCHER).exists():
        return launcher_is_gone(folder)
    return time.time() - os.lstat(folder).st_mtime > HALF_MADE


def launcher_is_gone(folder: Path) -> bool:
    """Whether the launcher that made a folder has ended: it holds the lock of its file no more, and no
    process has its number and began when it did (for file systems without locks). Without that file nothing
    is known: False."""
    try:
        with open(folder / LAUNCHER, "r+b") as file:
            if not try_lock(file):
                return False
            pid, _, start = file.read(100).decode("ascii", "replace").partition(" ")
    except OSError:
        return False
    return not (start and pid.isdecimal() and start_of(int(pid)) == start)


def start_of(pid: int) -> str:
    """When a process began, in the system's ticks since the machine did; "" where it has ended, or where
    there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
