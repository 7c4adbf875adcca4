"""`overnight plan`: what a run will cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight import plan
from overnight.config import ModelConfig

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_lectures_run_by_hand(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("plan", "gpt2-124m", "--gpu", "h100", "--gpus", 8, "--mfu", 0.5, "--price", 2, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["model"]["vocab_size"] == 50_304
    assert found["parameters"]["total"] == plan.parameters(ModelConfig(vocab_size=50_304))
    assert found["flops"]["per_token"] == pytest.approx(855e6, rel=1e-3)
    assert found["flops"]["per_token_causal"] == pytest.approx(798e6, rel=1e-3)
    assert found["tokens"]["run"] == 19_073 * 524_288
    (place,) = found["places"]
    seconds = found["flops"]["run"] / (8 * 989e12 * 0.5)
    assert place["hours"] == pytest.approx(seconds / 3600)
    assert place["cost"] == pytest.approx(place["hours"] * 8 * 2)
    assert place["micro_batch"] * place["micro_steps"] * 1024 * 8 == 524_288
    assert sum(v for k, v in place["needs"].items() if k != "total") == place["needs"]["total"]
    assert not list(tmp_path.iterdir())


def test_the_table_names_every_card_and_this_machine(cli: Cli) -> None:
    outcome = cli("plan", "gpt2-124m")
    assert outcome.code == 0
    for text in (
        "124.5 M parameters",
        "6 N + 12 L C T",
        "A100 80GB",
        "T4",
        "this CPU",
        "nothing in data/fineweb-edu yet",
    ):
        assert text in outcome.out


def test_data_that_is_there_gives_vocabulary_and_epochs(cli: Cli, data_folder: Path) -> None:
    found = json.loads(cli("plan", "shakespeare-cpu", "--data", data_folder, "--json").out)
    manifest = json.loads((data_folder / "manifest.json").read_text())
    assert found["tokens"]["data"] == manifest["tokens"]["train"]
    assert found["tokens"]["epochs"] == pytest.approx(2000 * 768 / manifest["tokens"]["train"])
    assert found["model"]["vocab_size"] % 64 == 0  # as on a GPU
    assert found["model"]["vocab_size"] - manifest["tokenizer"]["vocab_size"] < 64


def test_a_given_micro_batch_is_kept_and_refused_where_it_does_not_fit(cli: Cli) -> None:
    kept = json.loads(cli("plan", "gpt2-124m", "--gpu", "H100", "--micro-batch", 4, "--json").out)
    assert (kept["places"][0]["micro_batch"], kept["places"][0]["micro_steps"]) == (4, 128)
    refused = cli("plan", "gpt2-124m", "--gpu", "T4", "--micro-batch", 64)
    assert refused.code == 2
    assert "more than the 17.2 GB of one T4: give --micro-batch 16." in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gpu H300", "unknown GPU 'H300'"),
        ("--mfu 1.5", "mfu is 1.5: give more than 0, at most 1."),
        ("--gpus 0", "gpus is 0: give 1 or more."),
        ("--price -1", "price is -1.0: give 0 or more."),
        ("--model.n-head 5", "does not divide"),
        ("--stepz 5", "unknown option --stepz"),
    ],
)
def test_wrong_input_is_refused(cli: Cli, options: str, message: str) -> None:
    outcome = cli("plan", "gpt2-124m", *options.split())
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) <= 3


def test_a_model_too_large_for_a_card_says_so(cli: Cli) -> None:
    huge = ["--model.n-layer", 2000, "--model.n-embd", 25_600]
    assert "too large" in cli("plan", "gpt2-1558m", "--gpu", "RTX 4090", *huge).out


def test_a_model_too_large_for_one_card_is_shared_among_some(cli: Cli) -> None:
    """GPT-2 1558M on cards of 24 GB: not alone, but on two that shard it; and what it says is so."""
    card = ["gpt2-1558m", "--gpu", "RTX 4090"]
    assert "fsdp on 2" in cli("plan", *card).out
    (alone,) = json.loads(cli("plan", *card, "--json").out)["places"]
    assert (alone["micro_batch"], alone["shards_that_fit"]) == (None, 2)
    (shared,) = json.loads(cli("plan", *card, "--gpus", 2, "--parallel", "fsdp", "--json").out)["places"]
    assert shared["micro_batch"] >= 1
    assert shared["needs"]["total"] < shared["memory"]
    assert shared["needs"]["optimizer"] == alone["needs"]["optimizer"] // 2
    (more,) = json.loads(cli("plan", *card, "--gpus", 8, "--parallel", "fsdp", "--json").out)["places"]
    assert more["micro_batch"] > shared["micro_batch"]
