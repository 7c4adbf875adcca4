"""Folders that no other user can change: what torch.compile keeps (it runs what it finds there, pickles and
libraries), what was measured here, and where a launcher meets its ranks.

The system's shared temporary directory is not one of them: another user can create a name there first.
"""

import atexit
import contextlib
import errno
import functools
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from overnight.errors import UserError
from overnight.files import reason
from overnight.terminal import complain

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
FORGOTTEN = 30 * 86400.0  # seconds after which nobody comes back for a temporary file
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The user's cache folder for Overnight. Where there is none that is safe and can be written: a new
    temporary folder, which is removed when this process ends."""
    try:
        base = home_cache()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / "overnight"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if is_own_folder(folder):  # a umask of 002 let the group write; what is below is checked by itself
            os.chmod(folder, 0o700)
        return private_folder(folder)
    except OSError as error:
        return temporary_folder(f"{error.filename}: {reason(error)}")
    except RuntimeError:
        return temporary_folder("there is no home folder")


def home_cache() -> Path:
    """$XDG_CACHE_HOME (which counts where it is absolute, as its specification says) or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # Resolved, so that what is checked is what is used: whoever owns a link can turn it elsewhere later.
    return Path(os.path.realpath(given if os.path.isabs(given) else Path.home() / ".cache"))


def private_folder(path: Path) -> Path:
    """`path`, created where it is missing: a folder of this user that nobody else can write to. Raises
    OSError that says what is wrong with it."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    if problem := exposure(path, owners=(own_id(),)):
        raise PermissionError(errno.EPERM, problem, str(path))
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "it cannot be written", str(path))
    return path


def temporary_folder(why: str = "") -> Path:
    """A new folder in the temporary directory, under a random name, removed when this process ends."""
    first = not made_temporary.cache_info().currsize
    folder = made_temporary()
    if first and why:
        complain(f"Caches go to the temporary folder {folder}, which is removed at the end ({why}).")
    return folder


@functools.cache
def shared_temporary() -> str:
    """The temporary directory as this process found it: perhaps on another disk than the cache folder."""
    return tempfile.gettempdir()


@functools.cache
def made_temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="overnight-", dir=shared_temporary()))
    atexit.register(remove_own, folder, os.getpid())
    return folder


def remove_own(folder: Path, pid: int) -> None:
    """Remove a folder, unless this process is a fork of the one that made it."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def use_private_folders() -> None:
    """Give torch.compile and Triton folders for what they keep, and libraries one for temporary files, in
    this process and its children. Raises UserError where the user chose a cache that others can write to.

    The temporary directory, because inductor keeps compiled headers and more there wherever its cache is, at
    names that anybody knows (torch._inductor.codecache._HEADER_DIR). A private one of the user's is kept.
    """
    for variable, name in CACHES.items():
        if given := os.environ.get(variable):
            os.environ[variable] = str(checked_folder(variable, Path(given)))
        else:
            os.environ[variable] = str(cache_folder_for(name))
    folder = Path(os.path.realpath(shared_temporary()))
    if hasattr(os, "geteuid"):
        if not is_private(folder):
            folder = cache_folder_for("temporary")
            remove_forgotten(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def is_private(path: Path) -> bool:
    """Whether nobody else can write to a folder that exists."""
    try:
        return not exposure(path, owners=(own_id(),))
    except OSError:
        return False


def remove_forgotten(folder: Path) -> None:
    """Remove temporary files that killed processes left; not what inductor keeps there."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.name.startswith("torchinductor_") or time.time() - path.lstat().st_mtime < FORGOTTEN:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def cache_folder_for(name: str) -> Path:
    """A folder in the cache folder."""
    try:
        return private_folder(cache_folder() / name)
    except OSError as error:
        return private_folder(temporary_folder(f"{error.filename}: {reason(error)}") / name)


def checked_folder(variable: str, path: Path) -> Path:
    """The folder that the user chose for compiled code, without links on the way to it. Raises UserError
    where others could plant code in it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = Path(os.path.realpath(path))
        problem = exposure(real, owners=(own_id(), 0))
    except OSError as error:
        raise UserError(f"{variable} is {path}, which cannot be used: {reason(error)}.") from None
    if problem:
        raise UserError(
            f"{variable} is {path}, and torch.compile runs what it finds there, but {problem}.",
            f"Choose a folder of your own that only you can write to (chmod go-w), or unset {variable}.",
        )
    return real


def own_id() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder of this user, and no link to one."""
    info = os.lstat(path)
    return stat.S_ISDIR(info.st_mode) and hasattr(os, "geteuid") and info.st_uid == own_id()


def exposure(path: Path, owners: tuple[int, ...]) -> str:
    """How somebody other than `owners` could change what lies in a folder, through links: because of the
    folder itself, or of one around it, by which it could be replaced. "" where nobody can.

    In a sticky folder (/tmp) only the owner can replace a name. A folder around it may be writable for the
    user's private group, which has the user's number (a umask of 002 is common then).
    """
    if not hasattr(os, "geteuid"):
        return ""  # Windows: access lists, and every user has a temporary folder of his own
    real = Path(os.path.realpath(path))
    info = os.stat(real)
    if not stat.S_ISDIR(info.st_mode):
        return "it is not a folder"
    if info.st_uid not in owners:
        return f"it belongs to user {info.st_uid}"
    if info.st_mode & OTHERS_WRITE:
        return "other users can write to it"
    for around in real.parents:
        info = os.stat(around)
        if info.st_uid not in (own_id(), 0):
            return f"{around} belongs to user {info.st_uid}"
        shared = info.st_mode & (stat.S_IWOTH if info.st_gid == own_id() else OTHERS_WRITE)
        if shared and not info.st_mode & stat.S_ISVTX:
            return f"other users can write to {around}"
    return ""
