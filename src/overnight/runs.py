"""A run's folder: how it is named, and what it says of itself. Needs no torch."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.config import Config
from overnight.described import from_dict
from overnight.errors import UserError, near
from overnight.files import read_json

CONFIG, ENVIRONMENT, TOKENIZER = "config.json", "environment.json", "tokenizer.json"


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
    config = from_dict({key: value for key, value in described.items() if key not in extra}, where)
    return replace(config, model=config.model.sized()), extra


def vouched_config(run: Path, saved: dict[str, Any]) -> tuple[Config, dict[str, Any], str]:
    """The config of a run, what else config.json says, and what is wrong with that file, or "".

    saved: the checkpoint's copy of it, {} in earlier versions. The copy counts where the file is damaged or
    describes another model than the checkpoint's. Raises UserError where there is no copy to take.
    """
    try:
        config, extra = read_config(run)
    except UserError as error:
        if not saved:
            raise
        problem = str(error).splitlines()[0]
    else:
        if not saved or parse_config(saved, "in the checkpoint")[0].model == config.model:
            return config, extra, ""
        problem = f"{run / CONFIG} describes another model than the checkpoint."
    return *parse_config(saved, "in the checkpoint"), problem


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
