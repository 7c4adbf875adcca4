"""A run's folder: how it is named, and what it says of itself. Needs no torch."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.checks import fields_of
from overnight.config import Config
from overnight.described import from_dict
from overnight.errors import UserError, near
from overnight.files import read_json

CONFIG, ENVIRONMENT, TOKENIZER = "config.json", "environment.json", "tokenizer.json"

# What may differ when a run is resumed; steps may only grow.
FREE = {"steps", "eval_every", "val_tokens", "save_every", "sample_every", "keep", "device", "processes"}
FREE |= {"max_minutes", "max_restarts", "verify", "profile", "track"}
FREE |= {"hellaswag_every", "hellaswag_items", "hellaswag_file"}
FREE |= {"micro_batch", "parallel", "train.max_bad_steps"}  # how a step is computed, not which
FREE |= {"sample.prompt", "sample.count", "sample.length"}
PLACES = {"data", "run"}  # names of folders: the data is compared by its content, the run is itself


def run_path(name: str) -> Path:
    """A run's folder: a bare NAME is runs/NAME, anything with a separator is a path."""
    is_path = "/" in name or os.sep in name or name in (".", "..")
    return Path(name) if is_path else Path("runs") / name


def read_config(run: Path) -> tuple[Config, dict[str, Any]]:
    """A run's resolved config, and what else config.json says (preset, which fields were auto, the data's
    fingerprint)."""
    return parse_config(read_json(run / CONFIG, "config", seal=True), str(run / CONFIG))


def parse_config(described: dict[str, Any], where: str) -> tuple[Config, dict[str, Any]]:
    """The same from the content of config.json; `where` names the file in errors."""
    extra = {key: described.get(key) for key in ("preset", "auto", "data_fingerprint")}
    if not isinstance(extra["auto"], dict):
        extra["auto"] = {}
    config = from_dict({key: value for key, value in described.items() if key not in extra}, where)
    return replace(config, model=config.model.sized()), extra


def vouched_config(run: Path, saved: dict[str, Any]) -> tuple[Config, dict[str, Any], str]:
    """The config of a run, what else config.json says, and what is wrong with that file, or "".

    saved: the checkpoint's copy of it, {} in earlier versions. The copy counts where the file is damaged or
    not of the checkpoint's run. Raises UserError where there is no copy to take.
    """
    if not saved:
        return *read_config(run), ""
    vouched, told = parse_config(saved, "in the checkpoint")
    try:
        config, extra = read_config(run)
    except UserError as error:
        return vouched, told, str(error).splitlines()[0]
    if vouched.model != config.model:
        return vouched, told, f"{run / CONFIG} describes another model than the checkpoint."
    other = differing(config, vouched) - FREE - PLACES - extra["auto"].keys() - told["auto"].keys()
    if other or extra["data_fingerprint"] != told["data_fingerprint"]:
        why = ", ".join(sorted(other)) or "the data"
        return vouched, told, f"{run / CONFIG} is of another run than the checkpoint: it differs in {why}."
    return config, extra, ""


def differing(config: Config, other: Config) -> set[str]:
    """The names of the fields in which two configs differ."""
    values = dict(fields_of(other))
    return {name for name, value in fields_of(config) if value != values[name]}


def existing(name: str) -> Path:
    """The folder of a run that is there. Raises UserError that names those that are."""
    run = run_path(name)
    if not run.is_dir():
        known = sorted(path.name for path in Path("runs").glob("*") if path.is_dir())
        hint = near(run.name, known, "runs/")
        here = ", ".join(f"runs/{name}" for name in known)
        there = f" Runs here: {here}." if known else " `overnight train PRESET` makes one."
        raise UserError(f"there is no run {run}.{hint}{there}")
    return run
