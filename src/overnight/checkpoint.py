"""Checkpoints that are complete or absent: publish, find, load, prune.

A checkpoint is written into a folder whose name begins with a dot, every file and then the folder synced,
and renamed as the last act. A kill at any moment leaves the old checkpoints and perhaps a dotted folder,
which the next save removes. Equal weights give equal bytes: no metadata, nothing of time or place.
"""

import hashlib
import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from overnight.errors import UserError
from overnight.files import sha256_file, sync, to_json

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class State:
    """The content of state.json."""

    step: int
    """Updates done."""
    tokens: int
    """Tokens trained on."""
    seed: int
    """The random state: what step s draws (dropout) is seeded from seed, s and rank, so the seed is all."""
    data: str
    """Fingerprint of the data."""
    records_bytes: int
    """Size of records.jsonl when everything up to this step was in it and synced."""
    val_loss: float | None
    """Validation loss at this step, if it was measured."""
    scaler: dict[str, float]
    """Scale and growth of fp16's gradient scaler."""
    sha256: dict[str, str]
    """Checksums of the files beside this one."""


class Damaged(Exception):
    """A checkpoint whose files are not what its state.json says."""


def folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def publish(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> Path:
    """Save weights, optimizer and state as the checkpoint of `state.step`; its checksums are filled in."""
    target = folder(run, state.step)
    target.parent.mkdir(exist_ok=True)
    for leftover in target.parent.glob(".step_*"):
        shutil.rmtree(leftover)
    aside = target.with_name(f".{target.name}")
    aside.mkdir()
    try:
        write_tensors(weights(model), aside / WEIGHTS)
        write_tensors(optimizer_tensors(model, optimizer), aside / OPTIMIZER)
        checksums = {}
        for name in (WEIGHTS, OPTIMIZER):
            sync(aside / name)
            checksums[name] = sha256_file(aside / name)
        described = asdict(state) | {"sha256": checksums}
        (aside / STATE).write_text(to_json(described | {"checksum": checksum(described)}))
        sync(aside / STATE)
        sync(aside)
        os.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(target.parent)
    return target


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors without metadata; its errors become the OSError (a full disk, say) that they hide."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def checksum(described: dict[str, Any]) -> str:
    """SHA-256 of what state.json says, so that damage to it is found too."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, contiguous and on the CPU. The tied head is stored once, as the embedding."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as 'parameter.exp_avg' and so on."""
    out = {}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            out[f"{name}.{key}"] = tensor.detach().cpu().contiguous()
    return out


def list_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    parent = run / "checkpoints"
    if not parent.is_dir():
        return []
    found = (NAME.fullmatch(path.name) for path in parent.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def check(path: Path, names: tuple[str, ...] = (WEIGHTS, OPTIMIZER)) -> State:
    """The state of a checkpoint whose files `names` are, to the last bit, as written; Damaged otherwise."""
    try:
        described = json.loads((path / STATE).read_bytes())
        if described.pop("checksum") != checksum(described):
            raise Damaged(f"{STATE} is not the file that was saved")
        state = State(**{one.name: described[one.name] for one in fields(State)})
        for name in names:
            if sha256_file(path / name) != state.sha256[name]:
                raise Damaged(f"{name} is not the file that was saved")
        if f"step_{state.step:08d}" != path.name:
            raise Damaged(f"{STATE} is of step {state.step}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None
    return state


def newest_sound(run: Path, names: tuple[str, ...] = (WEIGHTS, OPTIMIZER)) -> tuple[State | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones. Changes nothing."""
    wrong: list[str] = []
    for step in reversed(list_steps(run)):
        try:
            return check(folder(run, step), names), wrong
        except Damaged as error:
            wrong.append(f"{folder(run, step).name}: {error}")
    return None, wrong


def move_damaged_aside(run: Path, newest: State | None) -> list[str]:
    """Rename the checkpoints newer than the newest sound one to damaged_*, for a person to look at."""
    moved = []
    for step in list_steps(run):
        if newest is None or step > newest.step:
            path, number = folder(run, step), 1
            while (target := path.with_name(f"damaged_{path.name}_{number}")).exists():
                number += 1
            os.rename(path, target)
            moved.append(target.name)
    return moved


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill a model from a checkpoint; every tensor must be there with its shape, and no other."""
    tensors = read_tensors(path / WEIGHTS)
    parameters = dict(model.named_parameters())
    for name in parameters.keys() | tensors.keys():
        have, want = tensors.get(name), parameters.get(name)
        if have is None or want is None or have.shape != want.shape:
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (have, want)]
            raise UserError(
                f"{path / WEIGHTS} does not fit the model: {name} is {shapes[0]}, not {shapes[1]}."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill an optimizer's state, in memory of its own: results depend, to the bit, on nothing else."""
    tensors = read_tensors(path / OPTIMIZER)
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            saved = tensors[f"{name}.{key}"]
            own = torch.empty_like(saved, device=parameter.device)
            optimizer.state[parameter][key] = own.copy_(saved)


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}.") from None


def prune(run: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the one with the lowest validation loss."""
    losses = {step: val_loss(run, step) for step in list_steps(run)}
    best = min(losses, key=lambda step: losses[step], default=None)
    for step in list(losses)[:-keep]:
        if step != best or losses[step] == math.inf:
            # Out of sight first: a half-removed folder must not look like a checkpoint.
            gone = folder(run, step).with_name(f".step_{step:08d}.removed")
            os.rename(folder(run, step), gone)
            shutil.rmtree(gone)


def val_loss(run: Path, step: int) -> float:
    """The validation loss that a checkpoint's state.json holds; infinity where it has none."""
    try:
        loss = json.loads((folder(run, step) / STATE).read_bytes())["val_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return loss if isinstance(loss, float) else math.inf
