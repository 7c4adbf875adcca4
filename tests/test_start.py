"""`train` on a run that exists resumes it, starts it again, or has nothing to do."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.violence import assert_same_end, events, measured

Train = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


def test_an_incomplete_run_resumes(stopped: Path, trained: Path, train: Train) -> None:
    assert train(stopped).code == 0
    (resume,) = events(stopped, "resume")
    assert (resume["step"], resume["tokens"], resume["detail"]["changes"]) == (2, 128, {})
    assert_same_end(stopped, trained)


def test_a_run_whose_time_is_up_asks_to_be_run_again(tmp_path: Path, trained: Path, train: Train) -> None:
    run = tmp_path / "x"
    ends = [train(run, "--max-minutes", 1e-9) for _ in range(4)]
    assert [end.code for end in ends] == [75, 75, 75, 0]
    assert "Preempted: saved step 1. Run the same command again to resume." in ends[0].out
    assert [event["step"] for event in events(run, "preempted")] == [1, 2, 3]
    assert [event["step"] for event in events(run, "resume")] == [1, 2, 3]
    assert_same_end(run, trained)


def test_a_complete_run_says_so_and_stays_as_it_is(run: Path, train: Train, tree: Tree) -> None:
    before = tree(run)
    for options in ((), ("--eval-every", 2), ("--keep", 1)):
        done = train(run, *options)
        assert (done.code, done.err) == (0, "")
        assert done.out == f"{run} is complete (4 steps): nothing to do.\n"
    assert tree(run) == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    run: Path, trained: Path, train: Train
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert train(run).code == 0
    assert_same_end(run, trained)


def test_a_run_killed_before_its_config_begins(tmp_path: Path, trained: Path, train: Train) -> None:
    run = tmp_path / "x"
    run.mkdir()
    (run / ".config.json.partial").write_text("{")
    assert train(run).code == 0
    assert_same_end(run, trained)


def test_a_complete_run_goes_on_for_more_steps(run: Path, train: Train) -> None:
    assert train(run, "--steps", 5).code == 0
    (resume,) = events(run, "resume")
    assert (resume["step"], resume["detail"]["changes"]) == (4, {"steps": [4, 5]})
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == [1, 2, 3, 4, 5]


def test_a_longer_run_killed_behind_its_end_gets_its_own_last_event(run: Path, train: Train) -> None:
    """The one of the shorter run does not count; a torn line does not spoil it."""
    assert train(run, "--steps", 5).code == 0
    content = (run / "records.jsonl").read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    assert b'"done"' in content[last:]
    (run / "records.jsonl").write_bytes(content[: last + 30])
    assert train(run, "--steps", 5).code == 0
    assert [event["step"] for event in events(run, "done")] == [4, 5]
