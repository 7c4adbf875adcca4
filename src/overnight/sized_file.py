"""Regular files whose reads are bounded: by a limit, and by the size that the file has.

Some of the system's files count as regular and have no end: /proc/self/pagemap has size 0 and 256 GB to read.
A stranger's folder may link to them.
"""

import errno
import functools
import io
import os
from pathlib import Path
from typing import Any

SYSTEM = ("/proc", "/sys")  # where they are, as far as they have a size


class SizedFile(io.FileIO):
    """An open file for reading, closed with its descriptor.

    A read raises OSError where it gets beyond `most` bytes, or beyond the size of the file: a file that grows
    while it is read is fine.
    """

    def __init__(self, descriptor: int, path: Path, most: int | None = None):
        super().__init__(descriptor, "rb")
        self._path, self._most = path, most
        found = os.fstat(descriptor)
        self._size = found.st_size
        try:
            if found.st_dev in system_devices():
                raise OSError(errno.EINVAL, "it is a file of the system, not of a disk", str(path))
            if most is not None and self._size > most:
                raise too_large(most, path)
        except BaseException:
            self.close()
            raise

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`, as its base does."""
        count = super().readinto(buffer)
        if count:
            self._check(self.tell())
        return count

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes, or all that is left."""
        if size is None or size < 0:
            return self.readall()
        part = super().read(size)
        self._check(self.tell())
        return part

    def readall(self) -> bytes:
        """Read all that is left."""
        parts = []
        while part := self.read(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _check(self, end: int) -> None:
        if end > self._size:
            self._size = max(self._size, os.fstat(self.fileno()).st_size)
            if end > self._size:
                problem = f"it has more to read than its {self._size:,} bytes: it is not an ordinary file"
                raise OSError(errno.EINVAL, problem, str(self._path))
        if self._most is not None and end > self._most:
            raise too_large(self._most, self._path)


def too_large(most: int, path: Path) -> OSError:
    """The error for a file of more than `most` bytes."""
    return OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))


@functools.cache
def system_devices() -> frozenset[int]:
    """The device numbers of the file systems that show the system's state as files."""
    return frozenset(os.stat(path).st_dev for path in SYSTEM if os.path.ismount(path))
