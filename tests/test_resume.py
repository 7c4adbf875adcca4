"""A run that was stopped, crashed or was killed resumes exactly."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import MODERN
from tests.small_run import options
from tests.violence import assert_same_end, events, wait_for_step

from overnight import cli, train
from overnight.stop import Stop


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
