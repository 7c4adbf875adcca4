"""TensorBoard and Weights & Biases: thin adapters that are told each record as it is written.

Nothing of a run depends on them: one that fails is dropped with a line, and training goes on. Both write into
the run's folder; W&B sends nothing unless WANDB_MODE=online says so.
"""

import hashlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from overnight.config import Config
from overnight.errors import UserError
from overnight.files import reason, subfolder
from overnight.visible import one_line

Record = dict[str, Any]
HEAD = ("kind", "step", "time", "tokens")


class Tracker(Protocol):
    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """tensorboard/ in the run: `tensorboard --logdir runs`. What an earlier process wrote beyond `first`, the
    step that this one goes on from, is taken out of sight."""

    def __init__(self, config: Config, run: Path, first: int):
        from torch.utils.tensorboard import SummaryWriter

        # A name that nobody can foresee: the writer follows whatever link has it already.
        self.writer = SummaryWriter(
            str(subfolder(run, "tensorboard")),
            purge_step=first + 1 if first else None,
            filename_suffix=f".{secrets.token_hex(8)}",
        )

    def write(self, record: Record) -> None:
        step, at = record["step"], datetime.fromisoformat(record["time"]).timestamp()
        for name, value in numbers(record):
            self.writer.add_scalar(name, value, step, at)
        if record["kind"] == "sample":
            code = f"    {record['prompt']}{record['text']}".replace("\n", "\n    ")  # as Markdown has it
            self.writer.add_text("sample", code, step, at)
        if record["kind"] in ("val", "event"):  # rarely: what is there may be looked at
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """wandb/ in the run; offline unless WANDB_MODE says otherwise, later `wandb sync`. All processes of a run
    are one run there."""

    def __init__(self, config: Config, run: Path, first: int):
        import wandb

        subfolder(run, "wandb")
        self.run = wandb.init(
            dir=str(run),
            project=os.environ.get("WANDB_PROJECT", "overnight"),
            name=run.resolve().name,
            id=hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=asdict(config),
            settings=wandb.Settings(
                console="off", silent=True, use_dot_wandb=False, x_sync_dir_suffix=secrets.token_hex(8)
            ),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        told: Record = dict(numbers(record))
        if record["kind"] == "sample":
            told["sample"] = record["prompt"] + record["text"]
        if told:
            self.run.log(told | {"step": record["step"], "tokens": record["tokens"]})

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, Callable[[Config, Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """('train/loss', 3.05) and so on: the numbers of a record; nothing for what was not finite."""
    if record["kind"] == "event":
        return
    for name, value in record.items():
        if name not in HEAD and isinstance(value, int | float):
            yield f"{record['kind']}/{name}", value


def check(config: Config) -> None:
    """Raise UserError for a tracker that is not installed."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--track {name}: it is not installed: pip install 'overnight[{name}]'")


class Trackers:
    """Those that a run's config names. say: a line for the reader, where one fails."""

    def __init__(self, config: Config, run: Path, first: int, say: Callable[[str], None]):
        self._open: dict[str, Tracker] = {}
        self._say = say
        for name in config.trackers:
            try:
                self._open[name] = KINDS[name](config, run, first)
            except Exception as error:  # whatever it is, it is theirs
                self._drop(name, error)

    def write(self, record: Record) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.write(record)
            except Exception as error:
                self._drop(name, error)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        why = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self._say(f"{name} is told nothing more, training goes on: {one_line(why)}"[:300])
