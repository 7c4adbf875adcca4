"""Readers of runs: configs, checkpoints, records."""

import io
import json
import math
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from rich.console import Console
from safetensors.torch import save_file
from tests.fuzzing import Reader
from tests.mutations import json_file, json_lines, safetensors, spoiled_json
from torch import Tensor

from overnight import checkpoint, optim, presets, records, resolve, runs, saved
from overnight.checks import fields_of
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.files import sealed, sha256_file, to_json
from overnight.models.gpt2 import GPT
from overnight.report import facts
from overnight.report.page import page
from overnight.report.summary import summary
from overnight.report.words import markdown, show
from overnight.saved import OPTIMIZER, STATE, WEIGHTS
from overnight.state import State
from overnight.weights.tensors import Weights, shapes

MODEL = ModelConfig(2, 2, 8, 8, 20)
MODERN = replace(MODEL, architecture="modern", bias=False, activation="relu2")
NOW = "2026-01-01T00:00:00.000Z"
RECORDS = [
    {"kind": "event", "step": 0, "time": NOW, "tokens": 0, "name": "start", "detail": {}},
    {"kind": "train", "step": 1, "time": NOW, "tokens": 64, "loss": 2.5, "lr": 1e-3},
    {"kind": "val", "step": 1, "time": NOW, "tokens": 64, "loss": 2.4, "bits_per_byte": 2, "val_tokens": 9},
    {
        "kind": "hellaswag",
        "step": 1,
        "time": NOW,
        "tokens": 64,
        "acc_norm": 0.3,
        "style": "x",
        "items": 10042,
    },
    {"kind": "sample", "step": 1, "time": NOW, "tokens": 64, "prompt": "a", "text": "b"},
    {"kind": "event", "step": 1, "time": NOW, "tokens": 64, "name": "spike", "detail": {"loss": 3.0}},
    {"kind": "event", "step": 1, "time": NOW, "tokens": 64, "name": "done", "detail": {}},
]


def random_tensors(config: ModelConfig = MODEL) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes(config).items()}


def tokenizer() -> tokens.Tokenizer:
    return tokens.train_char(["abcdefghijklmnopqrs"])  # with <|endoftext|> 20 ids


# A state of an earlier version, which says nothing of the other files, so that they themselves are looked at.
UNVOUCHED = State(1, 64, 1, "", 120, None, {})


def make_run(folder: Path, model: ModelConfig = MODEL) -> Path:
    """A run as `train` leaves it, with one checkpoint; its folder."""
    run = folder / "run"
    step = saved.folder(run, 1)
    step.mkdir(parents=True)
    tensors = random_tensors(model)
    save_file(tensors, step / WEIGHTS)
    optimizer = {f"{name}.step": torch.tensor(1.0) for name in tensors}
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer |= {f"{name}.{key}": tensor for name, tensor in random_tensors(model).items()}
    save_file(optimizer, step / OPTIMIZER)
    sums = {name: sha256_file(step / name) for name in (WEIGHTS, OPTIMIZER)}
    config = replace(
        presets.gpt2_quickstart(),
        batch_tokens=64,
        model=model,
        device="cpu",
        precision="fp32",
        compile="off",
        micro_batch=1,
    )
    described = {"preset": "quickstart"} | asdict(config) | {"auto": {"micro_batch": 1}}
    known: dict[str, Any] = {
        "step": 1, "tokens": 64, "seed": 1, "data": "0" * 64, "records_bytes": 120, "val_loss": 2.5,
        "scaler": {"scale": 65536.0}, "skipped": [[3, 5]], "bad_steps": 0, "sha256": sums,
        "records_sha256": "", "tokenizer": "", "config": described, "owed": ["hellaswag", "sample"],
    }  # fmt: skip
    (step / STATE).write_text(sealed({one.name: known[one.name] for one in fields(State)}))
    (run / runs.CONFIG).write_text(to_json(described))
    (run / runs.TOKENIZER).write_text(to_json(tokenizer().to_json()))
    (run / records.FILE).write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return run


def read_run(path: Path) -> None:
    """What sample, eval and inspect read of a run."""
    run = next(parent for parent in path.parents if parent.name == "run")
    weights, config, _ = resolve.of_checkpoint(saved.folder(run, 1), UNVOUCHED)
    assert all(type(value) is not dict for _, value in fields_of(config))
    use(weights)


def use(weights: Weights) -> None:
    """The tensors are those of the config, and the model computes with them."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    assert found == shapes(weights.config)
    assert all(tensor.dtype == torch.float32 for tensor in weights.tensors.values())
    with torch.no_grad():
        model = weights.model()
        model.logits(model.hidden(torch.zeros(1, 1, dtype=torch.int64)))


def read_config(path: Path) -> None:
    """What every verb reads first: the config, then the checkpoint with its checksums."""
    run = path.parent
    config, extra = runs.read_config(run)
    assert {"preset", "auto"} <= set(extra)
    assert config.sequences(0) > 0
    to_json(asdict(config))
    read_run(path)


def read_weights(path: Path) -> None:
    model = GPT(MODEL, 20)
    checkpoint.load_weights(path.parent, model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    read_run(path)


def read_optimizer(path: Path) -> None:
    model = GPT(MODEL, 20)
    optimizer = optim.adamw(model, presets.gpt2_quickstart().optim)
    checkpoint.load_optimizer(path.parent, model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def make_environment(folder: Path) -> Path:
    path = make_run(folder) / runs.ENVIRONMENT
    path.write_text(to_json({"git": "c0ffee", "gpus": ["H100"], "cpu": "a CPU", "threads": 2, "torch": "2"}))
    return path


def make_state(folder: Path) -> Path:
    return saved.folder(make_run(folder), 1) / STATE


def read_state(path: Path) -> None:
    """What a run that goes on does with the newest checkpoint."""
    run = path.parent.parent.parent
    checkpoint.look(run, 1)
    state = saved.check(path.parent)
    for name in ("step", "tokens", "seed", "records_bytes", "bad_steps"):
        value = getattr(state, name)
        assert type(value) is int, f"{name} is {value!r}"
        assert value >= 0, f"{name} is {value!r}"
    assert type(state.data) is str
    for number in (*state.scaler.values(), *([] if state.val_loss is None else [state.val_loss])):
        assert type(number) in (int, float)
        assert math.isfinite(number), "no float can be as large"
    assert all(type(a) is int and type(b) is int and 0 <= a <= b for a, b in state.skipped)
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    records.problem(copy, state.records_bytes, state.records_sha256)
    records.rewind(copy, state.records_bytes)
    config, _, problem = runs.vouched_config(run, state.config)
    assert config.steps > 0
    assert isinstance(problem, str)
    resolve.of_checkpoint(path.parent, state)


def resealed(valid: bytes) -> SearchStrategy[bytes]:
    """state.json with a checksum that fits what it says, so that the fields themselves are looked at."""

    def seal(content: bytes) -> bytes:
        try:
            described = json.loads(content)
            described.pop("checksum", None)
            return sealed(described).encode()
        except (ValueError, AttributeError, TypeError, RecursionError):
            return content

    return spoiled_json(valid).map(seal)


def read_records(path: Path) -> None:
    run = path.parent
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copy(path, copy / records.FILE)
    for size in (120, 10**6, 0):
        records.rewind(copy, size)
    assert all(record["kind"] == "event" for record in records.read(copy))
    for record in records.read(run):
        assert isinstance(record, dict)
        assert isinstance(record["kind"], str)


def read_report(path: Path) -> None:
    """What `report` and the dashboard make of a run, however broken: a page, valid JSON, and words."""
    run = facts.open_run(str(path.parent))
    assert "<h1>" in page([run])
    to_json(summary(run))
    markdown([run])
    show([run], Console(file=io.StringIO(), width=80))


READERS: dict[str, Reader] = {
    "config": Reader(lambda folder: make_run(folder) / runs.CONFIG, read_config, json_file),
    "config-modern": Reader(lambda folder: make_run(folder, MODERN) / runs.CONFIG, read_config, json_file),
    "run-tokenizer": Reader(lambda folder: make_run(folder) / runs.TOKENIZER, read_run, json_file),
    "weights": Reader(lambda folder: make_state(folder).with_name(WEIGHTS), read_weights, safetensors),
    "optimizer": Reader(lambda folder: make_state(folder).with_name(OPTIMIZER), read_optimizer, safetensors),
    "state": Reader(make_state, read_state, json_file),
    "state-resealed": Reader(make_state, read_state, resealed),
    "records": Reader(lambda folder: make_run(folder) / records.FILE, read_records, json_lines),
    "report-records": Reader(lambda folder: make_run(folder) / records.FILE, read_report, json_lines),
    "report-config": Reader(lambda folder: make_run(folder) / runs.CONFIG, read_report, json_file),
    "report-environment": Reader(make_environment, read_report, json_file),
}
