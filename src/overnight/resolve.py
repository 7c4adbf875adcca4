"""The MODEL grammar: what a user may write where a model is wanted.

runs/NAME, NAME or any path of a run    its newest complete checkpoint
the same with @STEP                     the checkpoint of that step
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overnight import checkpoint, config
from overnight.config import Config
from overnight.data import tokens
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError, near
from overnight.files import read_json
from overnight.models.gpt2 import GPT
from overnight.world import choose_precision

CONFIG, ENVIRONMENT, TOKENIZER = "config.json", "environment.json", "tokenizer.json"
OTHERS = ("hf:", "llmc:", "nanogpt:")  # reserved for other people's weights


@dataclass(frozen=True)
class Loaded:
    """A model ready to use, and where it comes from."""

    model: GPT
    tokenizer: Tokenizer
    origin: str
    """For people: 'runs/quickstart at step 2,500', or the name of other people's weights."""
    config: Config | None = None
    """Of the run; None for other people's weights, as for the next two."""
    run: Path | None = None
    step: int | None = None


def run_path(name: str) -> Path:
    """A run's folder: a bare NAME is runs/NAME, anything with a separator is a path."""
    is_path = "/" in name or os.sep in name or name in (".", "..")
    return Path(name) if is_path else Path("runs") / name


def read_config(run: Path) -> tuple[Config, dict[str, Any]]:
    """A run's resolved config, and what else config.json says (preset, and which fields were auto)."""
    described = read_json(run / CONFIG, "config")
    extra = {key: described.pop(key, None) for key in ("preset", "auto")}
    return config.from_dict(described, str(run / CONFIG)), extra


def checkpoint_of(name: str) -> Path:
    """MODEL -> the folder of a checkpoint that is there and whole; two levels up is its run.

    Raises UserError with the remedy.
    """
    if name.startswith(OTHERS):
        prefix = name.split(":")[0]
        raise UserError(f"{name}: this version cannot read {prefix}: models yet; name a run (runs/NAME).")
    base, _, at = name.rpartition("@")
    if not base or "/" in at or os.sep in at:  # an @ of a folder's name
        base, at = name, ""
    run = run_path(base)
    if not run.is_dir():
        known = sorted(path.name for path in Path("runs").glob("*") if path.is_dir())
        hint = near(run.name, known, "runs/")
        here = ", ".join(f"runs/{name}" for name in known)
        there = f" Runs here: {here}." if known else " `overnight train PRESET` makes one."
        raise UserError(f"there is no run {run}.{hint}{there}")
    read_config(run)
    steps = checkpoint.list_steps(run)
    if not at:
        state, wrong = checkpoint.newest_sound(run, (checkpoint.WEIGHTS,))
        if state is None:
            raise UserError(f"the run {run} has no complete checkpoint yet: train it first.", *wrong)
        return checkpoint.folder(run, state.step)
    if not at.isdecimal() or int(at) not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{run} has no checkpoint of step {at}. It has: {have}.")
    try:
        checkpoint.check(checkpoint.folder(run, int(at)), (checkpoint.WEIGHTS,))
    except checkpoint.Damaged as error:
        raise UserError(f"the checkpoint {name} is damaged: {error}.") from None
    return checkpoint.folder(run, int(at))


def precision(wanted: str, loaded: Loaded, device: torch.device) -> str:
    """What to compute in: as the run did, where the device is of the same kind, unless told otherwise."""
    if wanted == "auto" and loaded.config is not None and loaded.config.device == device.type:
        return loaded.config.precision
    return choose_precision(wanted, device)


def load(name: str, device: torch.device) -> Loaded:
    """MODEL -> a model in evaluation mode on `device`, with its tokenizer."""
    folder = checkpoint_of(name)
    run = folder.parent.parent
    config, _ = read_config(run)
    tokenizer = tokens.load(run / TOKENIZER)
    model = GPT(config.model, tokenizer.vocab_size)
    checkpoint.load_weights(folder, model)
    step = int(folder.name.removeprefix("step_"))
    return Loaded(model.to(device).eval(), tokenizer, f"{run} at step {step:,}", config, run, step)
