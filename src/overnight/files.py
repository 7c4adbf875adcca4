"""Reading and writing files: safe against power cuts, and against folders that a stranger has prepared.

Every file of a run or of prepared data is opened here (tests/test_opens.py enforces it):

open_regular        read: no FIFO, device or folder, which could block or never end
open_new            write a file that does not exist yet
open_real, open_own append or update: never through a symbolic link; nor, the second, a hard one
write_synced        replace a file as a whole: written aside under a random name, synced, renamed
subfolder           a folder inside a folder of ours: never a symbolic link

A link that the user put on the path to a run, such as `runs -> /scratch/runs`, is followed: only the last
component of a path is checked.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from glob import escape as glob_escape
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from overnight import bounded_json
from overnight.errors import Failure, UserError
from overnight.sized_file import SizedFile, too_large

DEEPEST = 50  # levels of nesting in a JSON file of ours; none has ten
LARGEST_JSON = 64 << 20  # bytes; the tokenizer with the most merges (2**20) takes 20 MB
STALE = 3600.0  # seconds after which an unfinished copy belongs to a process that was killed
CHECKSUM = "checksum"
# Windows has neither: there, opening a symbolic link needs a privilege, and FIFOs are not files.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_BLOCK = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a regular file for reading, through links if there are any. most: its size in bytes, at most.

    Raises OSError with a `strerror` that says what is there instead: a FIFO would block, a device may never
    end. A read raises one where there is more than `most` bytes, or than the file's size (sized_file.py).
    """
    descriptor = os.open(path, os.O_RDONLY | NO_BLOCK | BINARY)
    refuse_special(descriptor, path)
    return BufferedReader(SizedFile(descriptor, path, most))


def open_new(path: Path) -> IO[bytes]:
    """Create a file for writing. Raises FileExistsError where anything has that name, even a broken link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY
    return open(os.open(path, flags, 0o666), "wb")


def open_real(path: Path, create: bool = True, append: bool = False) -> IO[bytes]:
    """Open a file for reading and writing, unbuffered; `append`: every write goes to its end. Raises OSError
    where it is a symbolic link or not a file."""
    flags = os.O_RDWR | NO_FOLLOW | NO_BLOCK | BINARY
    flags |= (os.O_CREAT if create else 0) | (os.O_APPEND if append else 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from None
        raise
    refuse_special(descriptor, path)
    return open(descriptor, "a+b" if append else "r+b", buffering=0)


def open_own(path: Path, append: bool = False) -> IO[bytes]:
    """The same for a file that is ours alone, created where it is missing. One with a second name (a hard
    link) is replaced by a copy first, so that the other name keeps its content."""
    for _ in range(2):
        file = open_real(path, append=append)
        if os.fstat(file.fileno()).st_nlink < 2:
            return file
        with file:
            file.seek(0)
            write_synced(path, read_all(file, path, os.fstat(file.fileno()).st_size))
    raise OSError(errno.EMLINK, "it has several names (hard links)", str(path))


def refuse_special(descriptor: int, path: Path) -> None:
    """Close a descriptor and raise OSError where it is not that of a regular file."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    what = "a FIFO" if stat.S_ISFIFO(kind) else "a device" if stat.S_ISCHR(kind) else "not a regular file"
    raise OSError(errno.EINVAL, f"it is {what}", str(path))


def read_bytes(path: Path, most: int = LARGEST_JSON) -> bytes:
    """All of a regular file. Raises OSError where it has more than `most` bytes."""
    with open_regular(path, most) as file:
        return file.read()


def read_all(file: IO[bytes], path: Path, most: int = LARGEST_JSON) -> bytes:
    """What is left of an open file. Raises OSError where that is more than `most` bytes: sparse files and
    some of the system's are larger than any memory."""
    parts, left = [], most + 1
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise too_large(most, path)
    return b"".join(parts)


def subfolder(folder: Path, name: str) -> Path:
    """The folder `name` inside `folder`, made where it is missing.

    Raises OSError where it is a symbolic link: what is written there would land, and what is pruned there
    would vanish, somewhere else.
    """
    path = folder / name
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        sync(folder)
    if path.is_symlink():
        problem = "it is a symbolic link (move or link the whole folder around it instead)"
        raise OSError(errno.ELOOP, problem, str(path))
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(path))
    return path


def aside(path: Path) -> Path:
    """A hidden name beside `path` that nobody can foresee."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def remove_stale(path: Path, now: float) -> None:
    """Remove unfinished copies of `path`, a file or a folder, that killed processes left. now: the file
    system's time."""
    for leftover in path.parent.glob(f".{glob_escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):
            info = leftover.lstat()
            if now - info.st_mtime > STALE:
                shutil.rmtree(leftover) if stat.S_ISDIR(info.st_mode) else leftover.unlink()


def sha256_file(path: Path, most: int | None = None) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises OSError where it has more than `most` bytes."""
    with open_regular(path, most) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Indented JSON with a newline at the end; refuses NaN and infinity, which are not JSON."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file's name that is no Unicode: written with escapes
        text = json.dumps(value, indent=2, allow_nan=False)
    return text + "\n"


def parent_problem(path: Path) -> str | None:
    """What keeps `path` from being made: a parent that is a file."""
    blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    return f"{blocking} is a file, so {path} cannot be made: choose another place." if blocking else None


def unused(folder: Path, pattern: str) -> Path:
    """The first of the names `pattern` with 1, 2 and so on for {} that nothing in the folder has."""
    names = (folder / pattern.format(number) for number in itertools.count(1))
    return next(path for path in names if not os.path.lexists(path))


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; NTFS journals the rename itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: str | bytes) -> None:
    """Replace `path` as a whole: a kill or a power cut leaves the old content or the new one."""
    copy = aside(path)
    try:
        with open_new(copy) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime
        os.replace(copy, path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    sync(path.parent)
    remove_stale(path, now)


def checksum(described: dict[str, Any]) -> str:
    """SHA-256 of a JSON object without its checksum, hexadecimal, whatever the order of its keys."""
    rest = {key: value for key, value in described.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(described: dict[str, Any]) -> str:
    """A JSON object as text with its checksum inside, by which `read_json` notices any damage."""
    return to_json(described | {CHECKSUM: checksum(described)})


def read_json(path: Path, what: str, seal: bool = False) -> dict[str, Any]:
    """Read the JSON object in `path`; `what` names the file in the error.

    seal: compare the object with its checksum, where it has one (files of earlier versions have none), and
    leave that out.
    """
    try:
        value = bounded_json.parse(read_bytes(path))
        problem = "" if isinstance(value, dict) else "it contains no JSON object"
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {reason(error)}.") from None
    except bounded_json.TooManyValues as error:
        problem = str(error)
    except (ValueError, RecursionError):
        problem = "it is not JSON"
    if not problem and deeper_than(DEEPEST, value):
        problem = f"it is nested over {DEEPEST} deep"
    if problem:
        restore = "Restore it from a backup, or make it again."
        raise UserError(f"the {what} {path} is damaged: {problem}. {restore}")
    if seal and CHECKSUM in value:
        if value[CHECKSUM] != checksum(value):
            raise UserError(
                f"the {what} {path} is damaged: its content does not match its checksum.",
                "Restore it from a backup; if you edited it on purpose, remove the line with its checksum.",
            )
        del value[CHECKSUM]
    return value


def deeper_than(most: int, value: Any) -> bool:
    """Whether lists and objects lie in one another more than `most` deep. What json could just read would
    break, later, whatever copies, compares or prints it by recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def reason(error: BaseException) -> str:
    """What an error says, without a full stop at its end: never empty, never "None"."""
    said = (isinstance(error, OSError) and error.strerror) or str(error).strip()
    return (said or type(error).__name__).splitlines()[0].rstrip(". ")


def disk_problem(error: OSError) -> str:
    """Describe what is wrong with the disk."""
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EROFS: "the file system is read-only",
    }
    place = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
    return known.get(error.errno or 0, f"{reason(error)}{place}")


def is_full(error: OSError) -> bool:
    """Whether there is no room on the disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def clear_disk_errors(doing: str) -> Iterator[None]:
    """Turn a full disk and the like into one line that says what was being done and what would help."""
    try:
        yield
    except OSError as error:
        remedy = {errno.EROFS: " Choose another place."}.get(error.errno or 0, "")
        if is_full(error):
            remedy = " Free some space and run the command again."
        raise Failure(f"{doing}: {disk_problem(error)}.{remedy}") from error
