"""Find the checkpoints of a run and verify them. Imports no torch, because reports use it too."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

from overnight import bounded_json, plan, runs
from overnight.errors import Failure, UserError
from overnight.files import checksum, read_bytes, reason, sha256_file
from overnight.state import State

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NAME = re.compile(r"step_([0-9]{8,})")
HEADER = 16 << 20  # bytes of a safetensors header, at most
# Errors of what is not a file of ours: a FIFO, a socket, a device, a looping link, a file of the system, one
# that is too large.
SPECIAL = {errno.EINVAL, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP, errno.EFBIG}
LARGEST = 64 << 30  # bytes of a file whose model is not known: checkpoints of earlier versions


class Damaged(Exception):
    """A checkpoint whose files are not what its state.json says."""


def folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first. Folders whose names `folder` would not give are none
    of ours."""
    parent = run / "checkpoints"
    if not parent.is_dir():
        return []
    names = (path.name for path in parent.iterdir() if path.is_dir())
    steps = {name: int(match[1]) for name in names if (match := NAME.fullmatch(name))}
    return sorted(step for name, step in steps.items() if name == folder(run, step).name)


def check(path: Path, names: tuple[str, ...] = (WEIGHTS, OPTIMIZER)) -> State:
    """The state of a checkpoint whose files `names` are, to the last bit, as written; Damaged otherwise.
    Raises Failure where the disk cannot be read."""
    try:
        described = bounded_json.parse(read_bytes(path / STATE))
        if described.pop("checksum") != checksum(described):
            raise Damaged(f"{STATE} is not the file that was saved")
        state = State(**described)
        if problem := state.problem():
            raise Damaged(f"{STATE} is inconsistent: {problem}")
        for name in names:
            most = most_bytes(state, name)
            if (path / name).stat().st_size > most:
                raise Damaged(f"{name} is larger than the model")
            if sha256_file(path / name, most) != state.sha256[name]:
                raise Damaged(f"{name} is not the file that was saved")
        if f"step_{state.step:08d}" != path.name:
            raise Damaged(f"{STATE} is of step {state.step}")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Damaged(f"{reason(error)}: {error.filename}") from None
    except OSError as error:
        if error.errno in SPECIAL:
            raise Damaged(f"{reason(error)}: {error.filename}") from None
        # A disk that cannot be read now is not a checkpoint that is wrong.
        place = error.filename or path
        raise Failure(f"cannot read the checkpoint {path}: {reason(error)} ({Path(place).name}).") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}"[:200]) from None
    return state


def most_bytes(state: State, name: str) -> int:
    """The size of a file of tensors, at most: hashing a stranger's could take days."""
    try:
        config, _ = runs.parse_config(state.config, STATE)
        parameters = plan.parameters(config.model)
    except (UserError, TypeError):  # TypeError: no number of ids
        return LARGEST
    return HEADER + (4 if name == WEIGHTS else 8) * parameters


def newest_sound(
    run: Path,
    names: tuple[str, ...] = (WEIGHTS, OPTIMIZER),
    usable: Callable[[State], bool] = lambda state: True,
) -> tuple[State | None, list[str]]:
    """The newest checkpoint that is whole (and `usable`), and what was wrong with newer ones. Changes
    nothing."""
    wrong: list[str] = []
    for step in reversed(list_steps(run)):
        try:
            state = check(folder(run, step), names)
        except Damaged as error:
            wrong.append(f"{folder(run, step).name}: {error}")
        else:
            if usable(state):
                return state, wrong
    return None, wrong
