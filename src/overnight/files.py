"""Files that survive a power cut: written aside, synced, renamed; JSON read with errors a user can act on."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.errors import Failure, UserError

DEEPEST = 50  # levels of JSON in a file of ours; none has ten


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
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
    return next(path for path in names if not path.exists())


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
    """Write `path` so that after this returns it has the whole content, and before that the old one."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`; `what` names the file in the error."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"the {what} {path} is damaged: it is not JSON. Make it anew.") from None
    if not isinstance(value, dict):
        raise UserError(f"the {what} {path} is damaged: it holds no JSON object. Make it anew.")
    if deeper_than(DEEPEST, value):
        raise UserError(f"the {what} {path} is damaged: it is nested over {DEEPEST} deep. Make it anew.")
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


def disk_problem(error: OSError) -> str:
    """What is wrong with the disk, as far as the system tells."""
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EROFS: "the file system is read-only",
    }
    return known.get(error.errno or 0, f"{error.strerror}: {error.filename}")


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
