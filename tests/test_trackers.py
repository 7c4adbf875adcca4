"""TensorBoard and W&B are told what records.jsonl holds, and can break nothing."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import Outcome

from overnight import records, trackers

Train = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve that TensorBoard shows."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in names}


def wanted(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same curves, from the records."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records.read(run):
        for name, value in trackers.numbers(record):
            curves.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    return curves


def test_tensorboard_shows_the_records(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "x"
    assert train(run, "--track", "tensorboard", "--sample-every", 2).code == 0
    curves = board(run)
    assert curves == wanted(run)
    assert curves.keys() >= {"train/loss", "train/grad_norm", "val/bits_per_byte"}


def test_a_resumed_run_shows_no_step_twice(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps behind the checkpoint that a run goes on from are taken out of sight, as the records' are."""
    run = tmp_path / "x"
    assert train(run, "--track", "tensorboard").code == 0
    for step in (3, 4):
        folder = run / "checkpoints" / f"step_{step:08d}"
        folder.rename(folder.with_name(f".{folder.name}"))  # as if killed behind step 2
    assert train(run, "--track", "tensorboard", "--steps", 6).code == 0
    assert [step for step, _ in board(run)["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert board(run) == wanted(run)


def log_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format, in which W&B writes: blocks of 32 kB, in them (checksum, length, type, part); a
    record may have several parts, the last of type 1 or 4."""
    at, whole = 7, b""
    content = b"\0" * 7 + content  # blocks count from the file's beginning
    while at + 7 <= len(content):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_wandb_is_offline_and_is_told_the_records(train: Train, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "x"
    assert train(run, "--track", "wandb").code == 0
    [path] = run.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in log_records(path.read_bytes()[7:]):  # behind its magic number
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            named = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append(named)
    told: dict[str, list[tuple[int, Any]]] = {}
    for row in rows:
        for name, value in row.items():
            if "/" in name:
                told.setdefault(name, []).append((row["step"], value))
    assert told == wanted(run)


def test_both_at_once_and_the_run_is_the_same(train: Train, tmp_path: Path, trained: Path) -> None:
    """A tracker takes nothing from a run's random numbers: the weights are bit for bit those without."""
    run = tmp_path / "x"
    assert train(run, "--track", "tensorboard,wandb").code == 0
    weights = "checkpoints/step_00000004/model.safetensors"
    assert (run / weights).read_bytes() == (trained / weights).read_bytes()


@pytest.mark.parametrize("breaks", ["__init__", "write", "close"])
def test_a_tracker_that_fails_is_dropped_with_a_line(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the disk is elsewhere")

    monkeypatch.setattr(trackers.TensorBoard, breaks, broken)
    outcome = train(tmp_path / "x", "--track", "tensorboard")
    assert outcome.code == 0
    line = "tensorboard is told nothing more, training goes on: RuntimeError: the disk is elsewhere"
    assert outcome.out.count(line) == 1
    assert len([record for record in records.read(tmp_path / "x") if record["kind"] == "train"]) == 4


def test_an_unknown_tracker_is_refused(train: Train, tmp_path: Path) -> None:
    outcome = train(tmp_path / "x", "--track", "tensorbord")
    assert outcome.code == 2
    assert "there is no tracker 'tensorbord'. Did you mean tensorboard?" in outcome.err
    assert not (tmp_path / "x").exists()


def test_one_that_is_not_installed_is_told_before_step_0(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = train(tmp_path / "x", "--track", "wandb")
    assert outcome.code == 2
    assert "--track wandb: it is not installed: pip install 'overnight[wandb]'" in outcome.err
    assert not (tmp_path / "x").exists()


def test_what_was_not_finite_is_left_out() -> None:
    record = {"kind": "train", "step": 1, "time": "", "tokens": 5, "loss": None, "lr": 0.1, "mfu": None}
    assert list(trackers.numbers(record)) == [("train/lr", 0.1)]
    assert not any(math.isnan(value) for _, value in trackers.numbers(record))


def test_a_run_can_be_told_to_another_tracker_as_it_goes_on(train: Train, run: Path) -> None:
    assert train(run, "--track", "tensorboard", "--steps", 6).code == 0
    assert [step for step, _ in board(run)["train/loss"]] == [5, 6]
    assert os.listdir(run / "tensorboard")
