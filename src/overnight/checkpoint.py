"""Checkpoints that are complete or absent: publish, load, prune. saved.py finds and verifies them.

A checkpoint is written into a folder whose name begins with a dot, every file and then the folder synced,
and renamed as the last act. A kill at any moment leaves the old checkpoints and perhaps a dotted folder,
which the next save removes. Equal weights give equal bytes: no metadata, nothing of time or place.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from overnight import bounded_json, safetensors_header
from overnight.errors import UserError
from overnight.files import (
    open_new,
    read_bytes,
    sealed,
    subfolder,
    sync,
    unused,
    write_synced,
)
from overnight.parallel import as_placed
from overnight.saved import OPTIMIZER, STATE, WEIGHTS, folder, list_steps
from overnight.state import State

PIECE = 1 << 20  # bytes written at once; the system takes 16 MiB eight times slower


def publish(
    run: Path,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: State,
) -> Path:
    """Save tensors (of `tensors_of`, on the CPU) and state as the checkpoint of `state.step`; its checksums
    are filled in. Raises OSError where the disk does not take it; nothing of it is left then."""
    parent = subfolder(run, "checkpoints")
    remove_leftovers(parent)
    target = folder(run, state.step)
    hidden = parent / f".{target.name}.{secrets.token_hex(8)}"
    hidden.mkdir()
    try:
        checksums = {
            WEIGHTS: write_tensors(weights, hidden / WEIGHTS),
            OPTIMIZER: write_tensors(optimizer, hidden / OPTIMIZER),
        }
        write_synced(hidden / STATE, sealed(asdict(state) | {"sha256": checksums}))
        # Renamed the last time, but then syncing the folder's names failed; or a link that leads nowhere.
        if os.path.lexists(target):
            os.rename(target, hidden.with_name(f"{hidden.name}.removed"))
        os.rename(hidden, target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync(parent)
    return target


def remove_leftovers(parent: Path) -> None:
    """Remove the hidden folders of saves that were killed."""
    for leftover in parent.glob(".step_*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:  # not ours: a link is not followed, and rmtree would wait for the writer of a FIFO
            leftover.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write fp32 tensors as a safetensors file without metadata, byte for byte the library's own, and sync
    it. Returns its SHA-256, which costs no second reading. A piece at a time: other threads go on, and no
    second copy is made in memory."""
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(tensors):
        assert tensors[name].dtype == torch.float32
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    digest = hashlib.sha256()
    with open_new(path) as file:
        head = memoryview(struct.pack("<Q", len(described)) + described)
        for part in (head, *(tensors[name].reshape(-1).numpy().view(np.uint8).data for name in header)):
            for begin in range(0, len(part), PIECE):
                file.write(part[begin : begin + PIECE])
                digest.update(part[begin : begin + PIECE])
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Tensor]]:
    """(file, name, tensor) of all that a checkpoint holds: parameters by their names, the tied head once, as
    the embedding; the optimizer's state as 'parameter.exp_avg' and so on."""
    for name, parameter in model.named_parameters():
        yield WEIGHTS, name, parameter
        for key, tensor in optimizer.state[parameter].items():
            yield OPTIMIZER, f"{name}.{key}", tensor


def move_damaged_aside(run: Path, newest: State | None) -> list[str]:
    """Rename the checkpoints newer than the newest sound one to damaged_*, for a person to look at."""
    moved = []
    for step in list_steps(run):
        if newest is None or step > newest.step:
            path = folder(run, step)
            target = unused(path.parent, f"damaged_{path.name}_{{}}")
            os.rename(path, target)
            moved.append(target.name)
    return moved


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill a model from a checkpoint; every tensor must be there with its shape, and no other."""
    parameters = dict(model.named_parameters())
    tensors = read_fitting(path / WEIGHTS, {name: tuple(p.shape) for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill an optimizer's state, in memory of its own: results depend, to the bit, on nothing else. Each
    rank keeps its part of what is sharded."""
    parameters = dict(model.named_parameters())
    by_momentum = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    shapes = dict[str, tuple[int, ...]]()
    for name, p in parameters.items():
        if p in by_momentum:  # Muon's
            shapes[f"{name}.momentum_buffer"] = tuple(p.shape)
        else:  # AdamW's
            shapes |= {
                f"{name}.step": (),
                f"{name}.exp_avg": tuple(p.shape),
                f"{name}.exp_avg_sq": tuple(p.shape),
            }
    tensors = read_fitting(path / OPTIMIZER, shapes)
    for name in shapes:
        parameter, _, key = name.rpartition(".")
        optimizer.state[parameters[parameter]][key] = as_placed(tensors[name], parameters[parameter])


def read_fitting(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file that holds just these. Raises UserError that names the first that differs."""
    tensors = read_tensors(path)
    for name in sorted(shapes.keys() | tensors.keys()):
        have, wanted = tuple(tensors[name].shape) if name in tensors else "missing", shapes.get(name)
        if have != wanted:
            instead = f", not {wanted}" if name in shapes else ", which the model does not have"
            raise UserError(f"{path} does not fit the model: {name} is {have}{instead}.")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The fp32 tensors of a file. Raises UserError that names the first of another dtype."""
    try:
        if problem := safetensors_header.problem(path):
            raise UserError(f"cannot read {path}: {problem}.")
        with safe_open(path, framework="pt") as file:
            if problem := safetensors_header.wrong_dtype(file, file.keys(), ("F32",)):
                raise UserError(f"{path} is not a checkpoint of Overnight's: {problem}.")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}.") from None


def prune(run: Path, keep: int) -> int:
    """Remove all but the `keep` newest checkpoints, the one with the lowest validation loss, and the newest
    that is not from among bad steps; how many that were."""
    told = {step: look(run, step) for step in list_steps(run)}
    best = min(told, key=lambda step: told[step][0], default=None)
    good = max((step for step, (_, bad_steps) in told.items() if not bad_steps), default=None)
    stay = {good, best if best is not None and told[best][0] < math.inf else None}
    old = [step for step in list(told)[:-keep] if step not in stay]
    for step in old:
        # Out of sight first: a half-removed folder must not look like a checkpoint.
        gone = folder(run, step).with_name(f".step_{step:08d}.removed")
        os.rename(folder(run, step), gone)
        shutil.rmtree(gone)
    return len(old)


def look(run: Path, step: int) -> tuple[float, int]:
    """The validation loss in a checkpoint's state.json, infinity where it has none, and its bad steps, at a
    glance: nothing is verified."""
    try:
        described = bounded_json.parse(read_bytes(folder(run, step) / STATE))
        loss, bad_steps = described["val_loss"], described.get("bad_steps", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return math.inf, 1
    return loss if isinstance(loss, float) else math.inf, bad_steps if type(bad_steps) is int else 1
