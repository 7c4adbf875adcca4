"""A data folder in the making: hidden beside its place, kept over interruptions, renamed when it is whole."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.data.manifest import MANIFEST, TOKENIZER, Data
from overnight.errors import SAVED, Failure, UserError
from overnight.files import read_json, sync
from overnight.terminal import complain

PROGRESS = "progress.json"  # how far it has come: written by `prepare`, gone from the finished folder
SCRATCH = "scratch"  # a folder for what a source has to keep while it is read


class Stopped(UserError):
    """SIGTERM: what is done is kept, and the same command goes on."""

    code = SAVED


class LeftAsItIs(UserError):
    """What is there is not this command's to go on with, nor to remove."""


def partial(out: Path) -> Path:
    """The hidden folder beside `out`."""
    return out.parent / f".{out.name}.partial"


def request_of(folder: Path) -> dict[str, Any] | None:
    """What was asked for when `folder` was begun or made; None if it does not say."""
    for name in (MANIFEST, PROGRESS):
        if (folder / name).is_file():
            try:
                request = read_json(folder / name, "file").get("request")
            except UserError:
                request = None
            if not isinstance(request, dict):
                raise LeftAsItIs(f"{folder / name} is damaged: remove {folder} to begin anew.")
            return request
    return None


def differences(have: dict[str, Any], wanted: dict[str, Any]) -> str:
    """How two requests differ, in words; '' where they do not."""
    return "; ".join(
        "its files have changed since" if key == "files" else f"{key} {have.get(key)}, not {value}"
        for key, value in wanted.items()
        if have.get(key) != value
    )


def already_there(out: Path, request: dict[str, Any]) -> Data | None:
    """The finished data folder `out`, if it was made by the same request; refused if it holds another."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is no data folder: choose another --out.")
    data = Data(out)
    if different := differences(data.manifest.request, request):
        raise UserError(
            f"{out} holds other data ({different}).",
            "Choose another --out, or remove it to make it anew.",
        )
    return data


@contextlib.contextmanager
def staging(out: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The hidden folder in which `out` is made. Left normally, it becomes `out`; by a UserError, it goes;
    by anything else it stays, for the same request to go on with. One `prepare` at a time has it."""
    folder = partial(out)
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    check_own(folder)
    lock = lock_folder(folder)
    if lock is None:
        raise UserError(f"another `overnight prepare` is writing {out}: wait for it to end.")
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        begun = request_of(folder)
        if begun is None:
            clear(folder, keep={SCRATCH})
        elif different := differences(begun, request):
            raise LeftAsItIs(
                f"{folder} holds the beginning of other data ({different}).",
                "Run that command again to go on with it, choose another --out, or remove the folder.",
            )
        yield folder
        publish(folder, out)
    except LeftAsItIs:
        raise
    except BaseException as error:
        worth = (folder / PROGRESS).exists() or (folder / SCRATCH).exists()
        if worth and (isinstance(error, Failure | Stopped) or not isinstance(error, UserError)):
            complain(f"What is done is kept in {folder}: the same command goes on from there.")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:  # nothing is left behind, not even empty folders
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        if lock >= 0:
            os.close(lock)


def publish(folder: Path, out: Path) -> None:
    """Give a whole folder its name. A kill at any point leaves one that `staging` finds whole again."""
    shards = Data(folder).manifest.shards  # opened, that is checked, while nothing has been taken away
    clear(folder, keep={MANIFEST, TOKENIZER, *(shard["file"] for shard in shards)})
    sync(folder)
    if out.is_dir():
        out.rmdir()  # empty, or `already_there` would have refused
    os.rename(folder, out)
    sync(out.parent)


def clear(folder: Path, keep: set[str]) -> None:
    for leftover in folder.iterdir():
        if leftover.name not in keep:
            real_folder = leftover.is_dir() and not leftover.is_symlink()
            shutil.rmtree(leftover) if real_folder else leftover.unlink()


def check_own(folder: Path) -> None:
    """Raise LeftAsItIs unless it is a folder of this user: its content is removed and renamed, and in a
    shared `data` somebody else may have made a folder, or a link, of that name first."""
    if folder.is_symlink():
        raise LeftAsItIs(f"{folder} is a symbolic link: remove it, or choose another --out.")
    if hasattr(os, "geteuid") and (owner := folder.stat().st_uid) != os.geteuid():
        raise LeftAsItIs(f"{folder} belongs to another user (number {owner}): choose another --out.")


def stop(*_: object) -> None:
    raise Stopped("stopped by SIGTERM.")


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until this process ends or closes what is returned; None if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: there, nothing guards against a second `prepare`
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:  # not one that its owner has just renamed
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
