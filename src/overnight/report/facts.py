"""A run's folder, read for a report: its config, its history, its data, how it stands."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from overnight import lock, plan, records, runs, saved
from overnight.checks import fields_of
from overnight.config import Config
from overnight.data.manifest import MANIFEST, Data
from overnight.errors import Failure, UserError
from overnight.evals.yardstick import xz_bits_per_byte
from overnight.files import read_json, reason
from overnight.presets import PRESETS
from overnight.report.history import History
from overnight.state import State
from overnight.visible import one_line

QUIET = 120.0  # seconds without a record after which a run counts as ended, where its lock tells nothing
XZ_MOST = 1 << 20  # tokens that xz is given


@dataclass
class Run:
    """What is known of a run. Whatever is missing or damaged is None, and `problems` says so."""

    path: Path
    history: History
    config: Config | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Of config.json: preset, auto, data_fingerprint."""
    environment: dict[str, Any] = field(default_factory=dict)
    data: Data | None = None
    problems: list[str] = field(default_factory=list)
    label: str = ""
    """How it is called where several are compared."""
    _xz: dict[float, float | None] = field(default_factory=dict)
    _vouched: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return one_line(self.label or self.path.resolve().name)[:200]

    @property
    def preset(self) -> str:
        """The preset's name; '' where config.json does not say."""
        told = self.extra.get("preset")
        return told if isinstance(told, str) else ""

    @property
    def auto(self) -> dict[str, Any]:
        """The fields that were auto, with what they became."""
        told = self.extra.get("auto")
        return told if isinstance(told, dict) else {}

    @property
    def steps(self) -> int:
        """Steps that it is to take; 0 where nobody knows."""
        return self.config.steps if self.config else 0

    @property
    def loss(self) -> float:
        """The newest validation loss."""
        return self.history.val.last("loss")

    @property
    def vocabulary(self) -> int:
        """The tokens that a text may have; 0 where nobody knows."""
        if self.data:
            return self.data.tokenizer.vocab_size
        rows = self.config.model.vocab_size if self.config else 0
        return rows if isinstance(rows, int) else 0

    @property
    def parameters(self) -> int | None:
        sized = self.config and isinstance(self.config.model.vocab_size, int)
        return plan.parameters(self.config.model) if self.config and sized else None

    @property
    def cards(self) -> list[str]:
        """The names of the GPUs that it trained on; none on a CPU."""
        named = self.environment.get("gpus")
        on_gpu = self.config is not None and self.config.device == "cuda" and isinstance(named, list)
        return [str(name) for name in named or []] if on_gpu else []

    @property
    def machine(self) -> str:
        """What it trained on, on a line."""
        return one_line(self._machine())[:300]

    def _machine(self) -> str:
        ranks = self.history.session.ranks if self.history.session else 1
        if self.cards:
            return f"{ranks} x {self.cards[0]}"
        cpu, threads = self.environment.get("cpu"), self.environment.get("threads")
        where = f"{cpu}, {threads} thread{'s' if threads != 1 else ''}" if cpu else "unknown"
        device = self.config.device if self.config else ""
        shared = f", {ranks} ranks" if ranks > 1 else ""
        return f"{'Apple GPU, ' if device == 'mps' else ''}{where}{shared}"

    @property
    def xz(self) -> float | None:
        """Bits a byte that xz needs for the text of the newest validation; None where that is long or not
        here."""
        predicted = self.history.val.last("val_tokens")
        if self.data is None or not 0 < predicted <= min(XZ_MOST, len(self.data.split("val")) - 1):
            return None
        if predicted not in self._xz:  # it takes a second for a megabyte
            try:
                self.data.verify("val")
                self._xz[predicted] = xz_bits_per_byte(self.data, int(predicted))
            except UserError as error:
                if str(error) not in self.problems:
                    self.problems.append(str(error))
        return self._xz.get(predicted)

    def state(self, now: datetime | None = None) -> str:
        """complete, training, stopped (it said so), gave up, or silent (ended without a word)."""
        ends = self.history.events_named("done", "preempted", "interrupted", "gave_up", "start", "resume")
        last = ends[-1]["name"] if ends else ""
        if last == "done" and self.history.step >= self.steps:
            return "complete"
        held = lock.held(self.path)
        if held:
            return "training"
        if last in ("preempted", "interrupted"):
            return "stopped"
        if last == "gave_up":
            return "gave up"
        return "training" if held is None and self.recently(now) else "silent"

    def recently(self, now: datetime | None = None) -> bool:
        """Whether something was recorded within the last QUIET seconds. A run that is followed shows it by
        growing; else wall clocks are compared: what is far in the future is no more recent than what is old.
        """
        grew, last = self.history.grew_at, self.history.last_time
        if grew is not None and time.monotonic() - grew < QUIET:
            return True
        return last is not None and abs(((now or datetime.now(UTC)) - last).total_seconds()) < QUIET

    def seconds_left(self) -> float | None:
        """Of a run that goes on at the pace it has had, evaluations and all."""
        history = self.history
        if not history.step or not history.session or history.step >= self.steps:
            return None
        before = history.session.hours_before
        first = int(np.searchsorted(history.train["hours"], before, side="right"))
        steps, hours = history.train["step"][first:], history.train["hours"][first:]
        if len(steps) < 2 or hours[-1] <= hours[0] or steps[-1] <= steps[0]:
            return None
        return float((self.steps - steps[-1]) * 3600 * (hours[-1] - hours[0]) / (steps[-1] - steps[0]))

    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Fields that differ from the preset's (its value, the run's); what auto chose is not one."""
        if self.config is None or self.preset not in PRESETS:
            return {}
        preset, n_layer = PRESETS[self.preset](), self.config.model.n_layer
        follows = replace(preset.model, n_layer=n_layer).sized()  # the width from the depth, where it is 0
        theirs = dict(fields_of(replace(preset, model=replace(follows, n_layer=preset.model.n_layer))))
        return {
            name: (theirs[name], value)
            for name, value in fields_of(self.config)
            if theirs[name] != value and name not in self.auto
        }


def open_run(name: str) -> Run:
    """The run that is called `name` (runs.py). Raises UserError where there is none."""
    path = runs.existing(name)
    if not (path / runs.CONFIG).is_file() and not (path / records.FILE).is_file():
        raise UserError(f"{path} is no run: it has no {runs.CONFIG} and no {records.FILE}.")
    return refresh(Run(path, History(path)))


def refresh(run: Run) -> Run:
    """Read what is new: records, config, environment, and the data if it is not open yet."""
    run.problems = []
    try:
        run.history = run.history.update()
    except OSError as error:
        run.problems.append(f"{run.path / records.FILE} cannot be read: {reason(error)}.")
    state = None
    try:
        state, wrong = saved.newest_sound(run.path, names=())
        run.problems += checkpoint_problems(run, state, wrong)
    except (OSError, Failure) as error:
        run.problems.append(f"The records cannot be compared with the newest checkpoint: {reason(error)}.")
    except UserError:  # they cannot be read at all: reported above
        pass
    try:
        run.config, run.extra, problem = runs.vouched_config(run.path, state.config if state else {})
        run.problems += [f"{problem} The checkpoint's copy is used."] if problem else []
    except UserError as error:
        run.problems.append(str(error))
    try:
        run.environment = read_json(run.path / runs.ENVIRONMENT, "environment", seal=True)
    except UserError as error:
        run.problems.append(str(error))
    if run.config and run.data is None:
        try:
            run.data = data_of(run.path, run.config, run.extra.get("data_fingerprint"))
        except UserError as error:
            run.problems.append(str(error))
        except OSError as error:  # a name that is too long, a folder that others may not enter
            run.problems.append(
                f"Its data, {one_line(run.config.data)[:200]}, cannot be read: {reason(error)}."
            )
    return run


def checkpoint_problems(run: Run, state: State | None, wrong: list[str]) -> Iterator[str]:
    """What is `wrong` with the newest checkpoint's state.json, and how the records differ from those that
    `state`, the newest sound one, vouches for."""
    if wrong:
        yield f"The newest checkpoint is damaged: {one_line(wrong[0])[:500]}."
    if state is None:
        return
    key = f"{state.records_bytes} {state.records_sha256}"
    if key not in run._vouched:  # a live report refreshes every few seconds
        run._vouched[key] = records.problem(run.path, state.records_bytes, state.records_sha256)
    if problem := run._vouched[key]:
        yield f"The newest {'sound ' if wrong else ''}checkpoint vouches for other records ({problem})."


def data_of(path: Path, config: Config, fingerprint: Any) -> Data:
    """The data that a run was trained on, from where its config says or beside its folder of runs."""
    here = [Path(config.data), path.resolve().parent.parent / config.data]
    found = [Data(place) for place in dict.fromkeys(here) if (place / MANIFEST).is_file()]
    for data in found:
        if fingerprint in (None, data.fingerprint):
            return data
    if found:
        told = f"{found[0].folder} is not the data that the run was trained on (fingerprints differ)."
        raise UserError(told)
    raise UserError(
        f"Its data, {config.data}, was not found, so its losses cannot be compared with published ones."
    )


def same_data(compared: list[Run]) -> bool:
    """Whether nothing says that runs were trained and validated on different data."""
    return len({str(told) for run in compared if (told := run.extra.get("data_fingerprint"))}) < 2


DIFFERENT_DATA = (
    "These runs were trained and validated on different data: their losses say nothing of one another."
)


def differences(compared: list[Run]) -> dict[str, list[Any]]:
    """Fields of the configs that are not the same in all runs: name -> each one's value."""
    described = [dict(fields_of(run.config)) if run.config else {} for run in compared]
    names = list(dict.fromkeys(name for one in described for name in one))
    values = {name: [one.get(name) for one in described] for name in names if name != "run"}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def label(compared: list[Run]) -> None:
    """Give each a name: its folder's or, where two are called the same, its path."""
    names = [run.path.resolve().name for run in compared]
    for run, name in zip(compared, names, strict=True):
        run.label = name if names.count(name) == 1 else str(run.path)


def steadily(values: np.ndarray) -> float:
    """The median of those that are numbers; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
