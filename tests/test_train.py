"""Training: the records are true, an update is AdamW's, and the first loss is checked."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import make_data
from tests.small_run import options
from tests.violence import events, measured, newest

from overnight import cli, evaluator, records, runs, train
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.models import linear
from overnight.models.gpt2 import GPT
from overnight.saved import list_steps


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
