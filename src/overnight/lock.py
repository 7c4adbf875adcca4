"""One training at a time in a run's folder.

The lock is the system's (POSIX record locks, `msvcrt` on Windows): it dies with the process that took it,
however that ends, and children do not inherit it. The file says who holds it.
"""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import IO

from overnight.errors import UserError
from overnight.files import clear_disk_errors, open_real, read_bytes

FILE = ".lock"
GRACE = 5.0  # seconds for a killed process to be gone, and for ranks to see that their launcher is


class Lock:
    """Held from `take` to the end of the `with`. Taken twice by one process, it is one lock."""

    def __init__(self, run: Path):
        self.path = run / FILE
        self._file: IO[bytes] | None = None
        self._folder: int | None = None  # open, so that no other folder can be taken for it
        self._mine = f"process {os.getpid()} on {socket.gethostname()}"

    def __enter__(self) -> "Lock":
        """Take the lock if there is a run already; a new one has no folder yet."""
        if self.path.parent.is_dir():
            self.take()
        return self

    def take(self) -> bool:
        """Lock the folder, which exists; whether it was not yet locked by us. Raises UserError that names
        the process that holds it."""
        if self._file:
            return False
        if not self.wait(GRACE):
            raise UserError(
                f"{self.path.parent} is being trained by {self.holder()}.",
                "Wait until it has ended, or stop it; for a second run choose another --run.",
            )
        return True

    def wait(self, seconds: float) -> bool:
        """Take the lock as soon as it is free; whether it was within so many seconds."""
        until = time.monotonic() + seconds
        while not self._try():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def holder(self) -> str:
        """The process that has the lock, as it told."""
        with contextlib.suppress(OSError):
            return read_bytes(self.path, 4096).decode("utf-8", "replace").strip() or "another process"
        return "another process"

    def lost(self) -> bool:
        """Whether the name of our folder, which was moved away or lost its lock, is another run's by now."""
        if self._file is None or same_file(self._file, self.path):
            return False  # (not opened before that is clear: closing it would give our lock up)
        if self.path.is_file():
            return self.holder() != self._mine
        try:
            now = os.stat(self.path.parent)
        except FileNotFoundError:
            return False
        return self._folder is not None and not os.path.samestat(os.fstat(self._folder), now)

    def move(self) -> None:
        """Lock the folder that has the name now, in place of the one that was moved away. Raises UserError
        where another process has it."""
        file, folder = self._file, self._folder
        if file is None or same_file(file, self.path):
            return
        self._file = self._folder = None
        try:
            self.take()
        except BaseException:
            self._file, self._folder = file, folder
            raise
        close(file, folder)

    def _try(self) -> bool:
        with clear_disk_errors(f"locking {self.path.parent}"):
            # Not closed before the lock is given up: closing any handle of the file would do that.
            file = open_real(self.path)
        # Its last holder may have removed it between our opening and locking.
        if not (try_lock(file) and same_file(file, self.path)):
            file.close()
            return False
        if os.fstat(file.fileno()).st_nlink > 1:  # its second name is not ours to write to
            self.path.unlink()
            file.close()
            return self._try()
        self._file = file
        if hasattr(os, "O_DIRECTORY"):  # Windows moves no folder with an open file
            self._folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # on a full disk the holder stays nameless
            file.truncate(0)
            file.write(self._mine.encode())
        return True

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock up, and take its file away."""
        if self._file:
            with contextlib.suppress(OSError):  # Windows does not remove open files: it stays, unlocked
                if same_file(self._file, self.path):  # not another's, where the folder was moved
                    os.unlink(self.path)
            close(self._file, self._folder)
            self._file = self._folder = None


def close(file: IO[bytes], folder: int | None) -> None:
    file.close()
    if folder is not None:
        os.close(folder)


def try_lock(file: IO[bytes]) -> bool:
    """Lock a file for this process; False where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(1 << 30)  # far behind the text, which others must be able to read
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes it
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return True  # a file system without locks: nobody can be kept away, but training can go on
    return True


def same_file(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def held(run: Path) -> bool | None:
    """Whether a process is training in a run's folder; None where nothing tells: no process left its name,
    or it was on another machine, whose locks need not be seen here.

    Looking takes the lock for a moment, for which a training that begins just then waits. Not for a process
    that holds it: closing its file would release it.
    """
    try:
        with open_real(run / FILE, create=False) as file:
            if not try_lock(file):
                return True
            return False if file.read(200).endswith(f" on {socket.gethostname()}".encode()) else None
    except OSError:  # no lock, or not for us to open
        return None
