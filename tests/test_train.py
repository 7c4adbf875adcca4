"""Training keeps its promises: exact resume, the same on any number of ranks, true records."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import MODERN, make_data
from tests.violence import assert_same_end, events, measured, newest, wait_for_step

from overnight import cli, evaluator, records, runs, train
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.models import linear
from overnight.models.gpt2 import GPT
from overnight.saved import list_steps
from overnight.stop import Stop

SMALL = ["--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "16"]
SMALL += ["--batch-tokens", "128", "--optim.warmup-steps", "2", "--sample.length", "10"]


def options(data: Path, run: Path, *more: object) -> list[str]:
    return ["train", "shakespeare-cpu", "--data", str(data), "--run", str(run), *SMALL, *map(str, more)]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch):
    """Makes training be asked to stop after a number of updates of a process."""

    def arrange(updates: int, reason: str = "preempted") -> None:
        calls = []

        def asked(self: Stop) -> str:
            calls.append(1)
            return reason if len(calls) == updates else ""

        monkeypatch.setattr(Stop, "asked", asked)

    return arrange


VARIANTS = {
    "plain": [],
    "dropout": ["--model.dropout", 0.2],
    "accumulation": ["--micro-batch", 2],
    "sequential": ["--loader.order", "sequential"],
    "fp16": ["--precision", "fp16"],
    "bf16": ["--precision", "bf16"],
    "modern": MODERN,
    "modern in bf16, accumulated": [*MODERN, "--precision", "bf16", "--micro-batch", 2],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_ends_as_one_never_stopped(
    variant: str, data_folder: Path, tmp_path: Path, stop_after
) -> None:
    """Bit for bit: weights, optimizer and records, stopped at steps that nothing else is due at."""
    more = ["--steps", 12, "--eval-every", 4, "--sample-every", 5, "--save-every", 6, *VARIANTS[variant]]
    assert cli.run(options(data_folder, tmp_path / "whole", *more)) == 0
    for updates in (3, 4, 1):  # leaves after steps 3, 7 and 8
        stop_after(updates)
        assert cli.run(options(data_folder, tmp_path / "cut", *more)) == 75
    stop_after(10**9)
    assert cli.run(options(data_folder, tmp_path / "cut", *more)) == 0
    assert [event["step"] for event in events(tmp_path / "cut", "resume")] == [3, 7, 8]
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("broken", ["validate", "evaluate", "save", "update"])
def test_a_crash_anywhere_costs_the_steps_since_the_checkpoint_only(
    broken: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--steps", 9, "--eval-every", 3, "--sample-every", 3, "--save-every", 2]
    assert cli.run(options(data_folder, tmp_path / "whole", *more)) == 0
    intact, calls = getattr(train.Session, broken), []

    def breaks(self: train.Session, *arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2 + 4 * (broken in ("update", "evaluate")):
            intact(self, *arguments)  # the crash comes after the work, so that there is something to undo
            raise RuntimeError("crash")
        return intact(self, *arguments)

    monkeypatch.setattr(train.Session, broken, breaks)
    with pytest.raises(RuntimeError, match="crash"):
        cli.run(options(data_folder, tmp_path / "cut", *more))
    assert cli.run(options(data_folder, tmp_path / "cut", *more)) == 0
    assert events(tmp_path / "cut", "resume")[0]["step"] > 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def start_process(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "overnight", *arguments], stderr=subprocess.DEVNULL)


def test_killed_and_interrupted_processes_resume_exactly(data_folder: Path, tmp_path: Path) -> None:
    more = ["--steps", 1000, "--eval-every", 250, "--sample-every", 250, "--save-every", 20]
    arguments = options(data_folder, tmp_path / "cut", *more)
    # Step 50 is behind the save at 40, which waited for the one at 20 to be on the disk.
    for step, number, code in ((50, signal.SIGKILL, -9), (90, signal.SIGINT, 130), (140, signal.SIGTERM, 75)):
        process = start_process(arguments)
        wait_for_step(tmp_path / "cut", step, process)
        process.send_signal(number)
        assert process.wait() == code
    threads = torch.get_num_threads()
    assert start_process(arguments).wait() == 0
    assert start_process(options(data_folder, tmp_path / "whole", *more)).wait() == 0
    torch.set_num_threads(threads)
    assert len({event["step"] for event in events(tmp_path / "cut", "resume")} - {0}) == 3
    assert len(events(tmp_path / "cut", "interrupted")) == len(events(tmp_path / "cut", "preempted")) == 1
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_accumulation_changes_nothing_but_rounding(data_folder: Path, tmp_path: Path) -> None:
    for rows in (8, 4, 1):
        run = tmp_path / str(rows)
        assert cli.run(options(data_folder, run, "--steps", 6, "--micro-batch", rows)) == 0
    whole = [r for r in measured(tmp_path / "8") if r["kind"] == "train"]
    for rows in (4, 1):
        for a, b in zip(whole, measured(tmp_path / str(rows)), strict=False):
            assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-5)


def test_the_first_record_is_true(data_folder: Path, tmp_path: Path) -> None:
    """Loss, gradient norm, learning rate and tokens of update 1 against torch alone."""
    run = tmp_path / "run"
    assert (
        cli.run(options(data_folder, run, "--steps", 1, "--micro-batch", 2, "--optim.grad-clip", 0.01)) == 0
    )
    first = next(r for r in records.read(run) if r["kind"] == "train")
    config, _ = runs.read_config(run)
    data = Data(data_folder)
    model = GPT(config.model, data.tokenizer.vocab_size).init_weights(config.seed)
    batches = Batches(data.split("train"), 16, config.sequences, config.seed)
    inputs, targets = (torch.from_numpy(a) for a in batches.at(0, 0, 8))
    loss = model(inputs, targets)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4), "before clipping"
    assert (first["lr"], first["tokens"], first["mfu"]) == (pytest.approx(1.5e-3 / 2), 128, None)
    assert first["tokens_per_second"] == pytest.approx(128 / first["step_ms"] * 1000, rel=1e-2)


def test_one_update_is_adamws(data_folder: Path, tmp_path: Path) -> None:
    """Clipped gradients and torch's unfused AdamW on the same batch give the same weights."""
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 1, "--optim.grad-clip", 0.5)) == 0
    config, _ = runs.read_config(run)
    data = Data(data_folder)
    model = GPT(config.model, data.tokenizer.vocab_size).init_weights(config.seed)
    batches = Batches(data.split("train"), 16, config.sequences, config.seed)
    model(*(torch.from_numpy(a) for a in batches.at(0, 0, 8))).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    for p in model.parameters():
        p.grad *= 0.5 / norm
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1.5e-3 / 2, betas=(0.9, 0.99), eps=1e-8, fused=False, foreach=False,
    )  # fmt: skip
    optimizer.step()
    saved = load_file(newest(run) / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(saved[name], parameter.detach(), atol=1e-6, rtol=0, msg=name)


def test_records_hold_what_the_design_says(data_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        cli.run(
            options(
                data_folder, run, "--steps", 6, "--eval-every", 2, "--sample-every", 3, "--val-tokens", 50
            )
        )
        == 0
    )
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    by_kind: dict[str, list[dict]] = {}
    for line in lines:
        assert {"kind", "step", "time", "tokens"} <= line.keys()
        by_kind.setdefault(line["kind"], []).append(line)
    assert [r["step"] for r in by_kind["train"]] == [1, 2, 3, 4, 5, 6]
    assert [r["tokens"] for r in by_kind["train"]] == [128 * n for n in range(1, 7)]
    everything = len(Data(data_folder).split("val")) - 1
    assert [(r["step"], r["val_tokens"]) for r in by_kind["val"]] == [(2, 50), (4, 50), (6, everything)]
    assert [r["step"] for r in by_kind["sample"]] == [3, 6]
    assert all(isinstance(r["text"], str) and r["prompt"] == "\n" for r in by_kind["sample"])
    assert [r["name"] for r in by_kind["event"]] == ["start", "initial_loss", "checkpoint", "done"]
    start = by_kind["event"][0]["detail"]
    assert start["world"]["size"] == 1
    assert start["auto"] == {
        "model.vocab_size": Data(data_folder).tokenizer.vocab_size,
        "micro_batch": 8,
        "device": "cpu",
        "precision": "fp32",
        "compile": "off",
        "train.products": linear.choose_products("auto"),
    }
    loss = by_kind["event"][1]["detail"]
    assert loss["sane"]
    assert loss["loss"] == by_kind["train"][0]["loss"]
    assert loss["ln_vocabulary"] == math.log(Data(data_folder).tokenizer.vocab_size)


def test_evaluation_does_not_count_as_training_time(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    for name in ("validate", "state", "save"):
        intact = getattr(train.Session, name)

        def slow(self: train.Session, *arguments: object, intact=intact) -> object:
            slept.append(time.sleep(5 / 3))
            return intact(self, *arguments)

        monkeypatch.setattr(train.Session, name, slow)
    run = tmp_path / "run"
    assert (
        cli.run(
            options(data_folder, run, "--steps", 2, "--eval-every", 1, "--sample-every", 1, "--save-every", 1)
        )
        == 0
    )
    assert len(slept) == 6
    assert all(r["step_ms"] < 5000 for r in records.read(run) if r["kind"] == "train")


def test_the_run_can_be_run_again_from_its_config(data_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 2)) == 0
    config, extra = runs.read_config(run)
    assert extra["preset"] == "shakespeare-cpu"
    assert "auto" not in json.dumps(
        {key: value for key, value in config.__dict__.items() if isinstance(value, str)}
    )
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__


def test_weights_of_another_run_can_be_the_start(data_folder: Path, tmp_path: Path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.run(options(data_folder, first, "--steps", 5)) == 0
    assert (
        cli.run(
            options(
                data_folder,
                second,
                "--steps",
                1,
                "--init-from",
                first,
                "--optim.lr",
                1e-9,
                "--optim.min-lr",
                0,
            )
        )
        == 0
    )
    a, b = (load_file(newest(run) / "model.safetensors") for run in (first, second))
    assert all(torch.allclose(a[name], b[name], atol=1e-7) for name in a)
    assert not events(second, "initial_loss"), "these weights know something"
    other = options(data_folder, tmp_path / "third", "--init-from", first, "--model.n-layer", 1)
    assert cli.run(other) == 2
    assert "n-layer" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_the_first_loss_tells_a_broken_model_from_text_that_repeats_itself(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """GPT-2's head is its embedding: untrained, it guesses that a token follows itself."""
    one = ["--model.n-embd", 128, "--steps", 1]
    spaces = make_data(tmp_path, (50 * " " + "ab\n") * 1000)
    assert cli.run(options(spaces, tmp_path / "spaces", *one)) == 0
    [event] = events(tmp_path / "spaces", "initial_loss")
    assert event["detail"]["loss"] < event["detail"]["ln_vocabulary"] - 0.5
    assert event["detail"]["sane"]
    assert "as it should be" in capsys.readouterr().out
    init_weights, forward = GPT.init_weights, GPT.forward
    breaks = {
        "init_weights": lambda self, seed: times_ten(init_weights(self, seed)),
        "forward": lambda self, idx, targets: forward(self, idx, idx),  # nobody shifted the targets
    }
    for name, broken in breaks.items():
        with monkeypatch.context() as patch:
            patch.setattr(GPT, name, broken)
            assert cli.run(options(data_folder, tmp_path / name, *one)) == 0
        assert not events(tmp_path / name, "initial_loss")[0]["detail"]["sane"]
        assert "something is wrong with the model" in capsys.readouterr().out


@torch.no_grad()
def times_ten(model: GPT) -> GPT:
    model.wte.weight.mul_(10.0)
    return model


def test_a_compiler_that_fails_costs_one_line(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def no_compiler(function: object, **how: object) -> object:
        raise RuntimeError("no compiler here\nand many more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    run, plain = tmp_path / "run", tmp_path / "plain"
    assert cli.run(options(data_folder, run, "--steps", 3, "--compile", "on")) == 0
    assert capsys.readouterr().out.count("torch.compile does not work here") == 1
    assert cli.run(options(data_folder, plain, "--steps", 3)) == 0
    assert measured(run) == measured(plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_has_one_graph_whatever_is_evaluated(
    precision: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations end in shorter batches and windows, samples grow, steps accumulate: nothing of that is
    compiled, and nothing is compiled again."""
    intact, counters = torch.compile, torch._dynamo.utils.counters
    monkeypatch.setattr(torch, "compile", lambda f, **how: intact(f, backend="aot_eager", **how))
    torch._dynamo.reset()
    counters.clear()
    more = ["--steps", 6, "--compile", "on", "--precision", precision, "--micro-batch", 2]
    more += ["--eval-every", 2, "--val-tokens", 77, "--sample-every", 2, "--sample.length", 30]
    assert cli.run(options(data_folder, tmp_path / "run", *more)) == 0
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiled_run_trains_the_same_model(data_folder: Path, tmp_path: Path) -> None:
    """Evaluation and sampling use the raw module, and the checkpoint has its names."""
    pytest.importorskip("torch._inductor")
    if not any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.get_exec_path()):
        pytest.skip("needs a C++ compiler")
    run, plain = tmp_path / "run", tmp_path / "plain"
    for folder, choice in ((run, "on"), (plain, "off")):
        assert (
            cli.run(options(data_folder, folder, "--steps", 5, "--compile", choice, "--eval-every", 2)) == 0
        )
    for a, b in zip(measured(run), measured(plain), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert (
        load_file(newest(run) / "model.safetensors").keys()
        == load_file(newest(plain) / "model.safetensors").keys()
    )


def test_the_best_checkpoint_is_kept(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(
        evaluator,
        "validation",
        lambda *_: iter([("loss", next(losses)), ("bits_per_byte", 1.0), ("tokens", 9)]),
    )
    run = tmp_path / "run"
    assert (
        cli.run(options(data_folder, run, "--steps", 6, "--eval-every", 1, "--save-every", 1, "--keep", 2))
        == 0
    )
    assert list_steps(run) == [2, 5, 6]


def test_learning_happens(data_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 150, "--optim.lr", 1e-2, "--optim.min-lr", 1e-3)) == 0
    losses = [r["loss"] for r in records.read(run) if r["kind"] == "train"]
    assert sum(losses[-10:]) / 10 < losses[0] - 1.0
