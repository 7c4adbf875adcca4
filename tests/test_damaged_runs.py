"""A run with a damaged checkpoint, config or records resumes from what is sound."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit
from tests.violence import assert_same_end, events, measured, newest

from overnight import records, runs, saved
from overnight.config import Config

Train = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


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
    assert_same_end(run, trained)


def test_of_several_damaged_checkpoints_all_are_moved_aside(
    stopped: Path, trained: Path, train: Train
) -> None:
    for step in (1, 2):
        DAMAGES["no state"](saved.folder(stopped, step))
    assert train(stopped).code == 0
    assert [event["step"] for event in events(stopped, "resume")] == [0]
    assert saved.list_steps(stopped) == [1, 2, 3, 4]
    assert_same_end(stopped, trained)


def test_records_that_are_lost_do_not_stop_a_run(stopped: Path, trained: Path, train: Train) -> None:
    (stopped / records.FILE).unlink()
    assert train(stopped).code == 0
    assert [record["step"] for record in measured(stopped) if record["kind"] == "train"] == [3, 4]


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
    assert_same_end(run, trained)


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


def test_damaged_records_of_long_ago_do_not_keep_a_run_from_going_on(
    stopped: Path, trained: Path, train: Train
) -> None:
    content = bytearray((stopped / "records.jsonl").read_bytes())
    content[5] ^= 0x10  # a bit in the first line, which the checkpoint vouches for
    (stopped / "records.jsonl").write_bytes(content)
    assert train(stopped).code == 0
    for name in (saved.WEIGHTS, saved.OPTIMIZER):
        assert (newest(stopped) / name).read_bytes() == (newest(trained) / name).read_bytes()


def test_where_no_checkpoint_is_sound_the_old_records_are_kept_aside(run: Path, train: Train) -> None:
    before = (run / "records.jsonl").read_bytes()
    for step in saved.list_steps(run):
        (saved.folder(run, step) / saved.WEIGHTS).write_bytes(b"flipped")
    assert train(run).code == 0
    assert (run / "damaged_records_1.jsonl").read_bytes() == before
    assert [event["step"] for event in events(run, "resume")] == [0]
