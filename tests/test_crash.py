"""Killed at any moment and started again, a run ends as one that was never stopped, bit for bit."""

import signal
import subprocess
from pathlib import Path

import pytest
from tests.violence import assert_same_end, command, events, killed_at

from overnight import cli
from overnight.saved import list_steps

SMALL = "--device cpu --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.block-size 16 ".split()
SMALL += "--batch-tokens 128 --optim.warmup-steps 2 --sample.length 10 --steps 24 --eval-every 4".split()
SMALL += "--sample-every 6 --save-every 3 --keep 1 --val-tokens 1500 --model.dropout 0.1".split()

# Where the process kills itself: at what, for the how manieth time (see sabotage/sitecustomize.py).
MOMENTS = {
    "in the middle of a record": "record:17",
    "in the middle of a checkpoint's weights": "tensors:3",
    "in the middle of its optimizer's state": "tensors:6",
    "before its state.json": "state:5",
    "before its last rename": "published:5",
    "behind its last rename": "published:6",
    "in the middle of removing an old one": "prune:2",
    "in the middle of an evaluation": "evaluation:2",
    "before a sample": "sample:2",
    "behind an update, before its record": "update:13",
    "while the run's folder is made": "config:3",
    "behind the last checkpoint": "done:1",
}


def options(data: Path, run: Path, *more: object) -> list[str]:
    return ["train", "shakespeare-cpu", "--data", str(data), "--run", str(run), *SMALL, *map(str, more)]


@pytest.fixture(scope="module")
def whole(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert subprocess.run(command(*options(data_folder, run)), capture_output=True).returncode == 0
    return run


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_kill_costs_the_steps_since_the_checkpoint_only(
    moment: str, data_folder: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    dead = subprocess.run(
        command(*options(data_folder, run)), env=killed_at(moment), capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    saved = list_steps(run)
    assert cli.run(options(data_folder, run)) == 0
    assert_same_end(run, whole)
    assert len(events(run, "done")) == 1
    begun = [event["step"] for event in events(run, "resume")]
    assert begun == ([] if moment.startswith("done") else saved[-1:] or [0])


@pytest.mark.parametrize("moment", ["rewind:1", "rewound:1", "config:1", "config:2", "update:1", "tensors:1"])
def test_a_kill_while_it_begins_again_costs_nothing(
    moment: str, data_folder: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed in step 14 first, then while the folder is brought back to its checkpoint, then let alone."""
    run = tmp_path / "run"
    for at in ("update:14", moment):
        dead = subprocess.run(
            command(*options(data_folder, run)), env=killed_at(at), capture_output=True, text=True
        )
        assert dead.returncode == -signal.SIGKILL, dead.stderr
        assert list_steps(run)
    saved = list_steps(run)[-1]
    assert cli.run(options(data_folder, run)) == 0
    assert events(run, "resume")[-1]["step"] == saved
    assert_same_end(run, whole)
