"""A run of the modern recipe goes through every verb, or is refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import MODERN, TINY, Outcome
from tests.editing import edit

from overnight import resolve
from overnight.config import Config
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.presets import PRESETS

Cli = Callable[..., Outcome]


@pytest.fixture
def run(cli: Cli, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/m of the current folder, four steps."""
    monkeypatch.chdir(tmp_path)
    line = ["--data", data_folder, "--run", "m", *TINY, *MODERN, "--eval-every", 2, "--save-every", 2]
    assert cli("train", "shakespeare-cpu", *line).code == 0
    return tmp_path / "runs" / "m"


def test_it_is_evaluated_sampled_inspected_and_reported(cli: Cli, run: Path, data_folder: Path) -> None:
    told = json.loads(cli("eval", "m", "--json").out)["val"]
    recorded = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert told["loss"] == pytest.approx([r for r in recorded if r["kind"] == "val"][-1]["loss"], rel=1e-6)
    assert cli("sample", "m", "--prompt", "the ", "--length", 40, "--temperature", 0).code == 0
    shown = cli("inspect", "m")
    assert "lm_head.weight" in shown.out
    assert "skips" in shown.out
    assert "Position embeddings" not in (run / "inspect.html").read_text(encoding="utf-8")
    assert "modern, 1 layers of 16" in cli("report", "m", "--markdown").out


@pytest.mark.parametrize(("to", "whose"), [("hf", "class of transformers"), ("llmc", "program of llm.c")])
def test_an_export_is_refused_with_the_reason(cli: Cli, run: Path, to: str, whose: str) -> None:
    refused = cli("export", "m", "--to", to, "--out", "elsewhere")
    assert refused.code == 2
    assert f"runs/m at step 4 is no GPT-2: no {whose} computes its norms" in refused.err
    assert len(refused.err.strip().splitlines()) <= 3
    assert not Path("elsewhere").exists()


def test_its_weights_begin_another_run_of_its_kind_only(cli: Cli, run: Path, data_folder: Path) -> None:
    line = ["train", "shakespeare-cpu", "--data", data_folder, *TINY, "--init-from", "m"]
    refused = cli(*line, "--run", "other")
    assert refused.code == 2
    assert "has model.architecture modern, not gpt2: give --model.architecture modern" in refused.err
    padded = ["--model.vocab-size", 64, "--optim.lr", 1e-9, "--optim.embedding-lr", 1e-9]
    padded += ["--optim.head-lr", 1e-9, "--optim.scalar-lr", 1e-9, "--steps", 1]
    assert cli(*line, "--run", "again", *MODERN, *padded).code == 0
    begun, donor = (resolve.load(name, torch.device("cpu")) for name in ("again", "m"))
    ids = donor.model.n_tokens
    for name, tensor in donor.weights.tensors.items():
        used = begun.weights.tensors[name][: len(tensor)]
        torch.testing.assert_close(used, tensor, atol=1e-6, rtol=0, msg=name)
    assert (begun.weights.tensors["lm_head.weight"][ids:] == 0).all()


def test_another_optimizer_does_not_go_on(cli: Cli, run: Path, data_folder: Path) -> None:
    """Neither by its config, nor where config.json, or the checkpoint's copy too, was changed by hand."""
    line = ["train", "shakespeare-cpu", "--data", data_folder, "--run", "m", *TINY, *MODERN, "--steps", 6]
    line += ["--eval-every", 2, "--save-every", 2, "--optim.algorithm", "adamw"]
    refused = cli(*line)
    assert refused.code == 2
    assert "optim.algorithm muon -> adamw" in refused.err
    edit(run / "config.json", lambda config: config["optim"].update(algorithm="adamw"))
    refused = cli(*line)
    assert refused.code == 2
    assert "optim.algorithm muon -> adamw" in refused.err
    for state in run.glob("checkpoints/*/state.json"):
        edit(state, lambda saved: saved["config"]["optim"].update(algorithm="adamw"))
    refused = cli(*line)
    assert refused.code == 2
    assert "optimizer.safetensors does not fit the model" in refused.err


def test_depth_sizes_a_run(cli: Cli, data_folder: Path, tmp_path: Path) -> None:
    """What is 0 in a preset is a number in the run, and the run goes on."""
    line = ["--data", data_folder, "--run", tmp_path / "deep", "--device", "cpu", "--model.n-layer", 3]
    line += ["--model.block-size", 16, "--batch-tokens", 32, "--eval-every", 0, "--sample.prompt", "the"]
    assert cli("train", "modern-124m", *line, "--steps", 1, "--sample.count", 1).code == 0
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert (config["model"]["n_embd"], config["model"]["n_head"]) == (256, 2)
    report = cli("report", tmp_path / "deep", "--markdown").out
    assert "--model.n-layer 3" in report
    assert "--model.n-embd" not in report, "nobody gave it: it followed from the depth"
    assert cli("train", "modern-124m", *line, "--steps", 2, "--sample.count", 1).code == 0


def test_both_recipes_see_the_same_batches(data_folder: Path) -> None:
    """The same windows in the same order: a step is made of the config's data, seed and sizes alone."""
    tokens = Data(data_folder).split("train")

    def batches(config: Config) -> list:
        made = Batches(tokens, 16, lambda step: 4, config.seed, config.loader.order)
        return [made.at(step, 0, 4)[0].tolist() for step in range(5)]

    gpt2, modern = PRESETS["gpt2-124m"](), PRESETS["modern-124m"]()
    assert gpt2.sequences(0) == modern.sequences(0)
    assert batches(gpt2) == batches(modern)
