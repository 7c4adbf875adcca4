"""What happens before step 0: `auto` is resolved, data and machine are checked, an old run is recognised.

`decide` only reads, so that wrong input leaves nothing behind; `begin` then makes the folder or readies it.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from overnight import checkpoint, compiling, hardware, plan, records, resolve, runs, saved, trackers
from overnight import config as configs
from overnight.checks import fields_of
from overnight.compatibility import data_problems, donor_problems
from overnight.config import Config
from overnight.data.manifest import Data
from overnight.environment import environment
from overnight.errors import UserError, refuse
from overnight.evals import continuations, hellaswag, tasks
from overnight.evals.hellaswag import Question
from overnight.files import parent_problem, sealed, subfolder, write_synced
from overnight.lock import Lock
from overnight.models.linear import choose_products
from overnight.state import State
from overnight.terminal import Status
from overnight.weights.tensors import Weights
from overnight.world import World, choose_compile, choose_precision, device_memory


@dataclass(frozen=True)
class Start:
    """A run that may begin."""

    config: Config
    """Resolved: nothing in it is auto."""
    preset: str
    auto: dict[str, Any]
    """The fields that were auto, with what they became."""
    run: Path
    data: Data
    state: State | None
    """The checkpoint to go on from."""
    donor: Weights | None
    """What --init-from names, where there is no checkpoint yet."""
    questions: list[Question]
    """Of HellaSwag; none where it is not asked."""
    resuming: bool
    """Whether the run exists already, with or without a checkpoint."""
    changes: dict[str, Any]
    """Fields that differ from the run's config.json: [before, now]."""
    damaged: list[str]
    """What is wrong with checkpoints newer than `state`."""
    skipped: list[list[int]]
    """Windows that are left out: data/batches.py's `skipped`."""
    notes: list[str] = field(default_factory=list)
    """What was damaged in the run's folder besides checkpoints, and what was done about it."""
    gone_back: bool = False
    """Whether this run has just gone back from steps that did not happen."""

    def back_to(self, state: State | None, damaged: list[str], skipped: list[list[int]]) -> "Start":
        """The same run, going on from an earlier checkpoint or from the beginning, without some windows."""
        donor = self.donor
        if state is None and self.config.init_from and donor is None:
            donor = resolve.load(self.config.init_from, torch.device("cpu")).weights
        return replace(
            self, state=state, donor=donor, resuming=True, changes={}, damaged=damaged, skipped=skipped,
            gone_back=True,
        )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        if self.state is None or self.state.step < self.config.steps:
            return False
        return not self.state.owed or records.has_event(self.run, "done", self.state.step)

    @property
    def described(self) -> dict[str, Any]:
        """The content of config.json."""
        described = {"preset": self.preset} | asdict(self.config) | {"auto": self.auto}
        return described | {"data_fingerprint": self.data.fingerprint}


def decide(wanted: Config, preset: str, world: World) -> Start:
    """Check everything that can be checked, and choose every auto. Creates nothing.

    Raises UserError for missing or damaged data, a vocabulary smaller than the data's, a machine that
    cannot do what is asked, and a run that this config does not continue.
    """
    run, wanted = runs.run_path(wanted.run), replace(wanted, model=wanted.model.sized())
    if problem := parent_problem(run):
        raise UserError(problem)
    data = Data(Path(wanted.data))
    if wanted.verify:
        data.verify()
    old, known, state, damaged, notes = existing_run(run)
    if old and wanted.init_from and old.init_from.rpartition("@")[0] == wanted.init_from:
        wanted = replace(wanted, init_from=old.init_from)  # as it was pinned
    donor = None
    if wanted.init_from and state is None:
        loaded = resolve.load(wanted.init_from, torch.device("cpu"))
        donor = loaded.weights
        wanted = replace(wanted, init_from=loaded.name)  # pinned: what it is now, whatever it means later
    trackers.check(wanted)
    refuse(data_problems(wanted, data) + (donor_problems(wanted, donor, data) if donor else []))
    config = resolve_autos(wanted, old, data, world)
    auto = {name: dict(fields_of(config))[name] for name, value in fields_of(wanted) if value == "auto"}
    changes = compare(old, config, auto, run) if old else {}
    if data.fingerprint != (state.data if state else known.get("data_fingerprint") or data.fingerprint):
        raise UserError(
            f"{run} was trained on other data than {data.folder} (fingerprints differ).",
            "Give its own --data, or choose another --run.",
        )
    questions = hellaswag_questions(config, data, wanted.hellaswag_every)
    if wanted.hellaswag_every == "auto" and not questions:
        config = replace(config, hellaswag_every=0)
        auto["hellaswag_every"] = 0
    here_alone = config.device == "cpu" and world.size == 1 and config.parallel == "ddp"
    if wanted.compile == "auto" and here_alone and not old:  # last: it may take minutes
        pays = compiling.pays(config, data.tokenizer.vocab_size, Status())
        config = replace(config, compile="on" if pays else "off")
        auto["compile"] = config.compile
    resuming = old is not None
    return Start(
        config, preset, auto, run, data, state, donor, questions, resuming, changes, damaged,
        skipped=state.skipped if state else [], notes=notes,
    )  # fmt: skip


def existing_run(run: Path) -> tuple[Config | None, dict[str, Any], State | None, list[str], list[str]]:
    """What there is of a run: its config and what else config.json says, its newest sound checkpoint, what is
    wrong with newer ones, and notes on what else is. The checkpoint's copy of the config counts where
    config.json is damaged or describes another model."""
    if not run.exists() or (run.is_dir() and all(path.name.startswith(".") for path in run.iterdir())):
        return None, {}, None, [], []
    state, damaged = saved.newest_sound(run) if run.is_dir() else (None, [])
    if not (run / runs.CONFIG).is_file() and not (state and state.config):
        raise UserError(f"{run} exists and is not a run (it has no {runs.CONFIG}): choose another --run.")
    old, known, problem = runs.vouched_config(run, state.config if state else {})
    notes = [f"{problem} It is written again from the checkpoint's copy."] if problem else []
    return old, known, state, damaged, notes


def hellaswag_questions(config: Config, data: Data, wanted: int | str) -> list[Question]:
    """HellaSwag's questions, checked against the model; none where it is not asked. Where `auto` cannot have
    them it does without."""
    if not config.hellaswag_every:
        return []
    try:
        path = Path(config.hellaswag_file) if config.hellaswag_file else tasks.download_hellaswag()
        questions = hellaswag.read(path, config.hellaswag_items)
        for question in questions:
            item = hellaswag.to_item(question, "completion", data.tokenizer)
            continuations.check(item, config.model.block_size)
    except UserError as error:
        if wanted == "auto" and not config.hellaswag_file:
            return []
        raise UserError(f"HellaSwag: {error}", "Or train without it: --hellaswag-every 0") from None
    return questions


def resolve_autos(wanted: Config, old: Config | None, data: Data, world: World) -> Config:
    """Every auto becomes what the run has already, or what suits the data and this machine."""
    device = world.device
    model = wanted.model
    if model.vocab_size == "auto":
        ids = data.tokenizer.vocab_size
        rows = hardware.padded(ids) if device.type == "cuda" else ids  # CPUs gain nothing from unused rows
        model = replace(model, vocab_size=old.model.vocab_size if old else rows)
    kept_precision = old.precision if old and wanted.precision == "auto" else wanted.precision
    precision = choose_precision(kept_precision, device)
    kept_compile = wanted.compile
    if old and old.device == device.type and wanted.compile == "auto":
        kept_compile = old.compile
    config = replace(
        wanted,
        model=model,
        device=device.type,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        compile=choose_compile(kept_compile, device),  # type: ignore[arg-type]
        train=replace(wanted.train, products=choose_products(wanted.train.products)),
        processes=world.size,
    )
    if wanted.hellaswag_every == "auto":
        config = replace(config, hellaswag_every=old.hellaswag_every if old else wanted.eval_every)
    if wanted.micro_batch == "auto":
        unit = world.size * config.model.block_size
        tokens = configs.RAMP_START if config.optim.ramp_tokens else config.batch_tokens
        kept = old.micro_batch if old and old.device == device.type else None
        if not (isinstance(kept, int) and tokens % (unit * kept) == 0):
            room, rows = device_memory(device, world.size), max(1, tokens // unit)
            shards = world.size if config.parallel == "fsdp" else 1
            kept = plan.largest_micro_batch(config.model, rows, precision, device.type, room, shards) or 1
        config = replace(config, micro_batch=kept)
    return config


def compare(old: Config, new: Config, auto: dict[str, Any], run: Path) -> dict[str, Any]:
    """What differs between a run's config and the one it shall go on with; refused where it must not."""
    before, now = dict(fields_of(old)), dict(fields_of(new))
    changes = {name: [before[name], now[name]] for name in now if before[name] != now[name]}
    free = runs.FREE | runs.PLACES | set(auto)
    refused = [
        f"{name.replace('_', '-')} {was} -> {is_now}"
        for name, (was, is_now) in changes.items()
        if name not in free or (name == "steps" and is_now < was)
    ]
    if refused:
        raise UserError(
            f"{run} exists with another config: {', '.join(refused)}.",
            "Give its own values to go on (steps may only grow), or choose another --run.",
        )
    return {name: change for name, change in changes.items() if name not in runs.PLACES}


def begin(start: Start, lock: Lock) -> Start:
    """Make the run's folder, or bring that of an old run to where its checkpoint is; the run, with notes on
    damage that was found. A kill in between does no harm: the next start does it again."""
    start.run.mkdir(parents=True, exist_ok=True)
    if lock.take() and (start.run / runs.CONFIG).exists():
        raise UserError(f"{start.run} was begun by another process meanwhile: run the command again.")
    if not start.gone_back:  # then all of it is there
        describe(start)
    notes = list(start.notes)
    if start.resuming:
        subfolder(start.run, "checkpoints")  # a link would lead what follows out of the run
        size, sha256 = (start.state.records_bytes, start.state.records_sha256) if start.state else (0, "")
        problem = records.problem(start.run, size, sha256)
        if problem or (start.damaged and start.state is None):  # then what is cut off is all there is
            copy = records.copy_aside(start.run)
            notes += [f"{problem}: the run resumes without what is lost. A copy is kept: {copy}."] * bool(
                problem
            )
        checkpoint.move_damaged_aside(start.run, start.state)
        records.rewind(start.run, size)
    return replace(start, notes=notes)


def describe(start: Start) -> None:
    """Write what the run is, and where it runs now."""
    write_synced(start.run / runs.CONFIG, sealed(start.described))
    tokenizer = json.dumps(start.data.tokenizer.to_json(), ensure_ascii=False)
    write_synced(start.run / runs.TOKENIZER, tokenizer + "\n")
    write_synced(start.run / runs.ENVIRONMENT, sealed(environment()))
