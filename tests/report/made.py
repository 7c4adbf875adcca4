"""Runs that were never trained: folders with the records of a night, for reports to read."""

import json
import math
import random
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from overnight import presets
from overnight.config import Config
from overnight.data import shards, tokens
from overnight.data.manifest import BY_FIRST_SHARD, Data
from overnight.report import facts
from overnight.report.verdict import verdict

BEGAN = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)
CARDS = ["NVIDIA A100-SXM4-80GB"] * 8


def lecture(run: Path, **changes: Any) -> Config:
    """The lecture's run on eight cards, resolved."""
    config = presets.PRESETS["gpt2-124m"]()
    return replace(
        config, run=str(run), micro_batch=64, device="cuda", precision="bf16", compile="on", processes=8,
        hellaswag_every=250, model=replace(config.model, vocab_size=50_304), **changes,
    )  # fmt: skip


def loss_at(step: int) -> float:
    """Roughly the lecture's curve."""
    return 3.0 + 7.9 * math.exp(-step / 300) + 0.4 * (step / 1000 + 1) ** -0.6


class Night:
    """The lines of a run's records.jsonl; `clock` and `elapsed` are the wall time of the next, and the
    seconds that its process has trained."""

    def __init__(self, batch_tokens: int = 524_288):
        self.lines: list[str] = []
        self.batch_tokens, self.clock, self.elapsed = batch_tokens, BEGAN, 0.0
        self.draw = random.Random(1)

    def record(self, kind: str, step: int, **values: Any) -> None:
        told = self.clock.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"kind": kind, "step": step, "time": told, "tokens": step * self.batch_tokens}
        self.lines.append(json.dumps(head | values))

    def event(self, step: int, name: str, **detail: Any) -> None:
        self.elapsed = 0.0 if name in ("start", "resume") else self.elapsed
        self.record("event", step, name=name, detail=detail, elapsed=round(self.elapsed, 3))

    def wait(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.elapsed += seconds

    def train(self, step: int, loss: float | None = None, seconds: float = 0.3) -> None:
        self.wait(seconds)
        self.record(
            "train", step, loss=loss_at(step) + self.draw.gauss(0, 0.03) if loss is None else loss, lr=6e-4,
            grad_norm=0.3, step_ms=1000 * seconds, tokens_per_second=self.batch_tokens / seconds, mfu=0.4,
        )  # fmt: skip

    def validate(self, step: int, loss: float | None = None) -> None:
        self.wait(8)
        loss = loss_at(step) if loss is None else loss
        self.record("val", step, loss=loss, bits_per_byte=loss / 3.2, val_tokens=10_485_760)

    def ask(self, step: int, acc_norm: float, items: int = 10_042) -> None:
        self.record("hellaswag", step, acc=0.28, acc_norm=acc_norm, style="completion", items=items)

    def write(self, run: Path) -> None:
        (run / "records.jsonl").write_text("".join(line + "\n" for line in self.lines))


def make_run(run: Path, config: Config, night: Night, fingerprint: str | None = None) -> Path:
    """A run's folder with all that a report reads."""
    run.mkdir(parents=True, exist_ok=True)
    described = {"preset": "gpt2-124m"} | asdict(config) | {"auto": {"micro_batch": 64, "precision": "bf16"}}
    (run / "config.json").write_text(json.dumps(described | {"data_fingerprint": fingerprint}))
    where = {"gpus": CARDS, "torch": "2.13.0", "overnight": "0.1.0", "git": "c0ffee"}
    (run / "environment.json").write_text(json.dumps(where))
    night.write(run)
    return run


def full_night(steps: int, every: int = 250) -> Night:
    """A complete run that was resumed once, with two spikes."""
    night = Night()
    night.event(0, "start", world={"size": 8, "device": "cuda"})
    for step in range(1, steps + 1):
        spike = step in (steps // 3, steps // 2)
        night.train(step, loss_at(step) + 2.5 if spike else None)
        if spike:
            night.event(step, "spike", loss=loss_at(step) + 2.5, sigmas=31.0)
        if step == 2 * steps // 3:
            night.wait(3600)
            night.event(step, "resume", world={"size": 8}, damaged=[])
        if step % every == 0 or step == steps:
            night.validate(step)
            night.ask(step, 0.25 + 0.054 * step / steps)
            night.record("sample", step, prompt="Hello, I'm a language model,", text=f" at step {step}")
            night.event(step, "checkpoint", path=f"step_{step:08d}")
    night.event(steps, "done")
    return night


def fineweb(folder: Path) -> str:
    """Data that proves itself to be FineWeb-Edu's first shard, its zeros taking no room; its fingerprint."""
    folder.mkdir(parents=True)
    tokenizer = tokens.gpt2()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    listed = []
    for split, name, count in (("train", "train_000001.bin", 1000), ("val", "val_000000.bin", 100_000_000)):
        with open(folder / name, "wb") as file:
            file.write(shards.header(count, np.dtype("uint16")))
            file.truncate(1024 + 2 * count)
        listed.append({"file": name, "split": split, "tokens": count, "sha256": "0" * 64})
    described = {"kind": "gpt2", "vocab_size": 50_257, "eot": 50_256, "sha256": tokenizer.sha256}
    manifest = {
        "source": "fineweb-edu:sample-10BT", "documents": 1, "bytes": 1, "dtype": "uint16",
        "request": {"source": "fineweb-edu:sample-10BT", "tokenizer": "gpt2", "shard_tokens": 100_000_000},
        "tokens": {"train": 1000, "val": 100_000_000}, "split": BY_FIRST_SHARD, "tokenizer": described,
        "shards": listed, "details": {}, "version": 1,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Data(folder).fingerprint


def said(run: Path, night: Night | None = None, wait: float = 0.0) -> list[tuple[str, str]]:
    """The tones and texts of the run's verdict, `wait` seconds after the last record of `night`."""
    now = night.clock + timedelta(seconds=wait) if night else None
    return [(one.tone, one.text) for one in verdict(facts.open_run(str(run)), now)]
