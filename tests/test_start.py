"""`train` on a run that exists: DESIGN.md's table, row by row."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit

from overnight import records, runs, saved, saving
from overnight.config import Config

Train = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
UNTRUE_AFTER_A_STOP = {"time", "step_ms", "tokens_per_second", "mfu"}


def newest(run: Path) -> Path:
    return saved.folder(run, saved.list_steps(run)[-1])


def measured(run: Path) -> list[dict]:
    """Train, val and sample records, less what a stop may change."""
    kept = [record for record in records.read(run) if record["kind"] != "event"]
    return [{key: record[key] for key in record.keys() - UNTRUE_AFTER_A_STOP} for record in kept]


def events(run: Path, name: str) -> list[dict]:
    return [r for r in records.read(run) if r["kind"] == "event" and r["name"] == name]


def assert_ended_alike(run: Path, other: Path) -> None:
    """The same weights, optimizer and records, to the bit."""
    assert newest(run).name == newest(other).name
    for name in (saved.WEIGHTS, saved.OPTIMIZER):
        assert (newest(run) / name).read_bytes() == (newest(other) / name).read_bytes()
    assert measured(run) == measured(other)


@pytest.fixture
def stopped(run: Path) -> Path:
    """The run as a kill behind its third step left it: the newest checkpoint is of step 2."""
    for step in (3, 4):
        shutil.rmtree(saved.folder(run, step))
    lines = (run / records.FILE).read_bytes().splitlines(keepends=True)
    third = next(i for i, line in enumerate(lines) if b'"kind": "val", "step": 3' in line)
    (run / records.FILE).write_bytes(b"".join(lines[:third]) + lines[third][:20])
    return run


def test_an_incomplete_run_resumes(stopped: Path, trained: Path, train: Train) -> None:
    assert train(stopped).code == 0
    (resume,) = events(stopped, "resume")
    assert (resume["step"], resume["tokens"], resume["detail"]["changes"]) == (2, 128, {})
    assert_ended_alike(stopped, trained)


def test_a_run_whose_time_is_up_asks_to_be_run_again(tmp_path: Path, trained: Path, train: Train) -> None:
    run = tmp_path / "x"
    ends = [train(run, "--max-minutes", 1e-9) for _ in range(4)]
    assert [end.code for end in ends] == [75, 75, 75, 0]
    assert "Preempted: saved step 1. Run the same command again to resume." in ends[0].out
    assert [event["step"] for event in events(run, "preempted")] == [1, 2, 3]
    assert [event["step"] for event in events(run, "resume")] == [1, 2, 3]
    assert_ended_alike(run, trained)


def test_a_complete_run_says_so_and_stays_as_it_is(run: Path, train: Train, tree: Tree) -> None:
    before = tree(run)
    for options in ((), ("--eval-every", 2), ("--keep", 1)):
        done = train(run, *options)
        assert (done.code, done.err) == (0, "")
        assert done.out == f"{run} is complete (4 steps): nothing to do.\n"
    assert tree(run) == before


def flip(name: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": flip(saved.WEIGHTS),
    "a bit of the optimizer": flip(saved.OPTIMIZER),
    "weights cut short": lambda path: (path / saved.WEIGHTS).write_bytes(b"short"),
    "no optimizer": lambda path: (path / saved.OPTIMIZER).unlink(),
    "no state": lambda path: (path / saved.STATE).unlink(),
    "torn state": lambda path: (path / saved.STATE).write_text('{"step": 4,'),
    "a list for state": lambda path: (path / saved.STATE).write_text("[]"),
    "an empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_used(
    run: Path, trained: Path, train: Train, damage: Callable[[Path], object]
) -> None:
    """Though the run was complete, and whatever the records say."""
    damage(saved.folder(run, 4))
    went_on = train(run)
    assert went_on.code == 0
    assert "damaged checkpoint moved aside: step_00000004: " in went_on.out
    assert (run / "checkpoints" / "damaged_step_00000004_1").is_dir()
    (resume,) = events(run, "resume")
    assert resume["step"] == 3
    assert resume["detail"]["damaged"][0].startswith("step_00000004: ")
    assert_ended_alike(run, trained)


def test_of_several_damaged_checkpoints_all_are_moved_aside(
    stopped: Path, trained: Path, train: Train
) -> None:
    for step in (1, 2):
        DAMAGES["no state"](saved.folder(stopped, step))
    assert train(stopped).code == 0
    assert [event["step"] for event in events(stopped, "resume")] == [0]
    assert saved.list_steps(stopped) == [1, 2, 3, 4]
    assert_ended_alike(stopped, trained)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    run: Path, trained: Path, train: Train
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert train(run).code == 0
    assert_ended_alike(run, trained)


def test_a_run_killed_before_its_config_begins(tmp_path: Path, trained: Path, train: Train) -> None:
    run = tmp_path / "x"
    run.mkdir()
    (run / ".config.json.partial").write_text("{")
    assert train(run).code == 0
    assert_ended_alike(run, trained)


def test_records_that_are_lost_do_not_stop_a_run(stopped: Path, trained: Path, train: Train) -> None:
    (stopped / records.FILE).unlink()
    assert train(stopped).code == 0
    assert [record["step"] for record in measured(stopped) if record["kind"] == "train"] == [3, 4]


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


def test_a_complete_run_goes_on_for_more_steps(run: Path, train: Train) -> None:
    assert train(run, "--steps", 5).code == 0
    (resume,) = events(run, "resume")
    assert (resume["step"], resume["detail"]["changes"]) == (4, {"steps": [4, 5]})
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == [1, 2, 3, 4, 5]


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
    assert_ended_alike(stopped, trained)


def test_data_and_runs_may_move(stopped: Path, trained: Path, data_folder: Path, train: Train) -> None:
    """The data is known by its content, the run is where it is."""
    moved = stopped.rename(stopped.parent / "y")
    elsewhere = shutil.copytree(data_folder, stopped.parent / "elsewhere")
    assert train(moved, "--data", elsewhere).code == 0
    assert events(moved, "resume")[0]["detail"]["changes"] == {}
    assert_ended_alike(moved, trained)


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


def config_of(run: Path) -> Config:
    """The config in a run's folder, wherever that is."""
    return replace(runs.read_config(run)[0], run="", data="")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 4}'])
def test_a_damaged_config_is_written_again_from_the_checkpoint(
    run: Path, stopped: Path, trained: Path, train: Train, content: str
) -> None:
    before = config_of(run)
    (run / "config.json").write_text(content)
    done = train(run)
    assert done.code == 0
    assert "config.json is damaged" in done.out
    assert config_of(run) == before
    assert any("config.json" in note for note in events(run, "resume")[0]["detail"]["notes"])
    assert_ended_alike(run, trained)


def test_so_is_that_of_a_complete_run(run: Path, train: Train) -> None:
    before = config_of(run)
    edit(run / "config.json", lambda config: config["model"].update(n_head=4))
    done = train(run)
    assert done.code == 0
    assert "config.json describes another model than the checkpoint." in done.out
    assert config_of(run) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 4}'])
def test_without_a_copy_a_damaged_config_is_refused(
    run: Path, train: Train, tree: Tree, content: str
) -> None:
    """As checkpoints of earlier versions are."""
    for path in run.glob("checkpoints/*/state.json"):
        edit(path, lambda state: state.pop("config"))
    (run / "config.json").write_text(content)
    before = tree(run)
    refused = train(run)
    assert refused.code == 2
    assert "config.json" in refused.err
    assert tree(run) == before


def test_autos_stay_what_the_run_made_of_them(stopped: Path, train: Train, data_folder: Path) -> None:
    """A vocabulary padded for a GPU keeps its padding on a CPU."""
    config = json.loads((stopped / "config.json").read_text())
    assert config["model"]["vocab_size"] == config["auto"]["model.vocab_size"]
    edit(stopped / "config.json", lambda config: config.update(micro_batch=2))  # chosen on a smaller machine
    assert train(stopped).code == 0
    assert json.loads((stopped / "config.json").read_text())["micro_batch"] == 2


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(
    stopped: Path, trained: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "PATIENCE", 1.5)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # bytes of a file; the weights have more
    try:
        full = train(stopped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 1
    assert full.out.count("NOT SAVED: File too large") >= 2, "loudly, and each time"
    assert full.err.startswith("overnight: the checkpoint was not saved: File too large")
    names = [r["name"] for r in records.read(stopped) if r["kind"] == "event"]
    assert "save_failed" in names
    assert "done" not in names
    assert saved.list_steps(stopped) == [1, 2]
    assert train(stopped).code == 0
    assert_ended_alike(stopped, trained)


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


def test_damaged_records_of_long_ago_do_not_keep_a_run_from_going_on(
    stopped: Path, trained: Path, train: Train
) -> None:
    content = bytearray((stopped / "records.jsonl").read_bytes())
    content[5] ^= 0x10  # a bit in the first line, which the checkpoint vouches for
    (stopped / "records.jsonl").write_bytes(content)
    assert train(stopped).code == 0
    for name in (saved.WEIGHTS, saved.OPTIMIZER):
        assert (newest(stopped) / name).read_bytes() == (newest(trained) / name).read_bytes()


def test_a_longer_run_killed_behind_its_end_gets_its_own_last_event(run: Path, train: Train) -> None:
    """The one of the shorter run does not count; a torn line does not spoil it."""
    assert train(run, "--steps", 5).code == 0
    content = (run / "records.jsonl").read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    assert b'"done"' in content[last:]
    (run / "records.jsonl").write_bytes(content[: last + 30])
    assert train(run, "--steps", 5).code == 0
    assert [event["step"] for event in events(run, "done")] == [4, 5]


def test_where_no_checkpoint_is_sound_the_old_records_are_kept_aside(run: Path, train: Train) -> None:
    before = (run / "records.jsonl").read_bytes()
    for step in saved.list_steps(run):
        (saved.folder(run, step) / saved.WEIGHTS).write_bytes(b"flipped")
    assert train(run).code == 0
    assert (run / "damaged_records_1.jsonl").read_bytes() == before
    assert [event["step"] for event in events(run, "resume")] == [0]
