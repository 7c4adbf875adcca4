"""What may change when a run resumes, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit
from tests.violence import assert_same_end, events, measured

from overnight import saved

Train = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]

FREE = [
    ("--steps", 6, "steps", 4),
    ("--eval-every", 2, "eval_every", 1),
    ("--val-tokens", 50, "val_tokens", 30_720),
    ("--save-every", 2, "save_every", 1),
    ("--sample-every", 1, "sample_every", 1000),
    ("--sample.prompt", "the night", "sample.prompt", "\n"),
    ("--sample.count", 2, "sample.count", 1),
    ("--sample.length", 9, "sample.length", 8),
    ("--keep", 1, "keep", 9),
    ("--max-minutes", 60.0, "max_minutes", 0.0),
    ("--train.max-bad-steps", 3, "train.max_bad_steps", 10),
    ("--micro-batch", 2, "micro_batch", 4),
]


@pytest.mark.parametrize(("option", "value", "field", "was"), FREE)
def test_what_changes_no_weights_may_change(
    stopped: Path, train: Train, option: str, value: Any, field: str, was: Any
) -> None:
    went_on = train(stopped, option, value)
    assert went_on.code == 0
    assert f"{field.replace('_', '-')}: {was} -> {value}\n" in went_on.out
    (resume,) = events(stopped, "resume")
    assert (resume["step"], resume["detail"]["changes"]) == (2, {field: [was, value]})
    kept = json.loads((stopped / "config.json").read_text())
    for part in field.split("."):
        kept = kept[part]
    assert kept == value


def test_the_new_values_act(stopped: Path, train: Train) -> None:
    assert train(stopped, "--steps", 6, "--eval-every", 5, "--sample-every", 4, "--keep", 1).code == 0
    steps = {
        kind: [r["step"] for r in measured(stopped) if r["kind"] == kind]
        for kind in ("train", "val", "sample")
    }
    assert steps == {"train": [1, 2, 3, 4, 5, 6], "val": [1, 2, 5, 6], "sample": [4, 6]}
    assert saved.list_steps(stopped)[-1] == 6
    assert len(saved.list_steps(stopped)) <= 2  # the newest and the best


def test_a_run_of_another_machine_goes_on_here(stopped: Path, trained: Path, train: Train) -> None:
    """Two GPUs with two windows each there, one CPU with all four here."""
    there = {"device": "cuda", "processes": 2, "micro_batch": 2}
    edit(stopped / "config.json", lambda config: config.update(there))
    assert train(stopped, "--micro-batch", 4).code == 0
    (resume,) = events(stopped, "resume")
    assert resume["detail"]["changes"] == {
        "device": ["cuda", "cpu"],
        "processes": [2, 1],
        "micro_batch": [2, 4],
    }
    assert_same_end(stopped, trained)


def test_data_and_runs_may_move(stopped: Path, trained: Path, data_folder: Path, train: Train) -> None:
    """The data is known by its content, the run is where it is."""
    moved = stopped.rename(stopped.parent / "y")
    elsewhere = shutil.copytree(data_folder, stopped.parent / "elsewhere")
    assert train(moved, "--data", elsewhere).code == 0
    assert events(moved, "resume")[0]["detail"]["changes"] == {}
    assert_same_end(moved, trained)


REFUSED = [
    ("--steps", 3, "steps 4 -> 3"),
    ("--seed", 7, "seed 1337 -> 7"),
    ("--batch-tokens", 128, "batch-tokens 64 -> 128"),
    ("--precision", "bf16", "precision fp32 -> bf16"),
    ("--compile", "on", "compile off -> on"),
    ("--deterministic", None, "deterministic False -> True"),
    ("--model.n-layer", 2, "model.n-layer 1 -> 2"),
    ("--model.n-head", 4, "model.n-head 2 -> 4"),
    ("--model.vocab-size", 64, "model.vocab-size"),
    ("--model.bias", None, "model.bias False -> True"),
    ("--model.activation", "gelu_tanh", "model.activation gelu -> gelu_tanh"),
    ("--model.attention", "manual", "model.attention flash -> manual"),
    ("--model.dropout", 0.5, "model.dropout 0.0 -> 0.5"),
    ("--optim.lr", 2e-3, "optim.lr 0.0015 -> 0.002"),
    ("--optim.warmup-steps", 2, "optim.warmup-steps 1 -> 2"),
    ("--optim.schedule", "constant", "optim.schedule cosine -> constant"),
    ("--optim.betas", "0.9 0.95", "optim.betas (0.9, 0.99) -> (0.9, 0.95)"),
    ("--optim.grad-clip", 2.0, "optim.grad-clip 1.0 -> 2.0"),
    ("--loader.order", "sequential", "loader.order shuffled -> sequential"),
    ("--init-from", "runs/x", "init-from"),
]


@pytest.mark.parametrize(("option", "value", "words"), REFUSED)
@pytest.mark.parametrize("complete", [True, False])
def test_any_other_difference_is_refused_and_named(
    run: Path, train: Train, tree: Tree, option: str, value: Any, words: str, complete: bool
) -> None:
    if not complete:
        shutil.rmtree(saved.folder(run, 4))
    before = tree(run)
    refused = train(run, option, *([] if value is None else str(value).split()))
    assert refused.code == 2
    assert words in refused.err
    assert "choose another --run" in refused.err
    assert len(refused.err.strip().split("\n")) <= 3
    assert tree(run) == before


def test_all_differences_are_named_and_free_ones_are_not(run: Path, train: Train) -> None:
    refused = train(run, "--seed", 7, "--optim.lr", 0.5, "--model.n-embd", 32, "--eval-every", 3)
    assert refused.code == 2
    for words in ("seed 1337 -> 7", "optim.lr 0.0015 -> 0.5", "model.n-embd 16 -> 32"):
        assert words in refused.err
    assert "eval-every" not in refused.err


@pytest.mark.parametrize("which", ["other_data", "foreign_data"])
def test_other_data_is_refused(
    run: Path, train: Train, tree: Tree, which: str, request: pytest.FixtureRequest
) -> None:
    before = tree(run)
    refused = train(run, "--data", request.getfixturevalue(which))
    assert refused.code == 2
    assert "data" in refused.err
    assert tree(run) == before


def test_autos_stay_what_the_run_made_of_them(stopped: Path, train: Train, data_folder: Path) -> None:
    """A vocabulary padded for a GPU keeps its padding on a CPU."""
    config = json.loads((stopped / "config.json").read_text())
    assert config["model"]["vocab_size"] == config["auto"]["model.vocab_size"]
    edit(stopped / "config.json", lambda config: config.update(micro_batch=2))  # chosen on a smaller machine
    assert train(stopped).code == 0
    assert json.loads((stopped / "config.json").read_text())["micro_batch"] == 2


def test_data_that_changed_before_the_first_checkpoint_is_refused(
    run: Path, other_data: Path, train: Train, tree: Tree
) -> None:
    """The run has nothing but its config yet, and that knows what it was begun on."""
    for step in saved.list_steps(run):
        shutil.rmtree(saved.folder(run, step))
    before = tree(run)
    refused = train(run, "--data", other_data)
    assert refused.code == 2
    assert "was trained on other data" in refused.err
    assert tree(run) == before
    assert train(run).code == 0
