"""Ranks that are asked to stop save the same step and leave together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.launching import FOREVER, family, start, status, wait_until_gone
from tests.violence import children, events, sabotaged, wait_for_step

from overnight import records
from overnight.saved import list_steps
from overnight.stop import SAVED_FIRST

__all__ = ["start"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

HOURS = "overnight.step:train_step=10000"


def torchrun(*more: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *more,
        "-m",
        "--",
    )


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGTERM, 75, "preempted"),
        (signal.SIGUSR1, 75, "preempted"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_ranks_asked_to_stop_save_the_same_step(
    number: int, code: int, reason: str, start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2)
    wait_for_step(run, 5, process)
    ranks = family(process)
    process.send_signal(number)
    assert process.wait(60) == code
    last = list(records.read(run))[-1]
    assert (last["kind"], last["name"]) == ("event", reason)
    assert list_steps(run)[-1] == last["step"]
    wait_until_gone(ranks)
    assert not (run / ".lock").exists()


@pytest.mark.parametrize(
    ("number", "code", "reason"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_so_do_ranks_whose_cache_folder_was_emptied(
    number: int, code: int, reason: str, start, tmp_path: Path
) -> None:
    """Their launcher cannot leave them a word then."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2, env=os.environ | {"XDG_CACHE_HOME": str(cache)})
    wait_for_step(run, 5, process)
    shutil.rmtree(cache)
    process.send_signal(number)
    assert process.wait(60) == code
    (event,) = events(run, reason)
    assert list_steps(run)[-1] == event["step"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_stop_that_everybody_is_told_before_there_are_ranks(
    number: int, code: int, stopped_before: bool, start, tmp_path: Path
) -> None:
    """As systemd and Slurm tell it: to every process there is."""
    run = tmp_path / "run"
    if stopped_before:
        process = start(run, *FOREVER)
        wait_for_step(run, 5, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    process = start(run, *FOREVER, "--processes", 2)
    os.kill(agent_of(process), number)
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr.read().splitlines() == [f"overnight: stopping: {SAVED_FIRST}"]


def test_an_agent_that_is_killed_is_no_stop(start, tmp_path: Path) -> None:
    """Though the run was asked to stop in an earlier session."""
    run = tmp_path / "run"
    process = start(run, *FOREVER)
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    process = start(run, *FOREVER, "--processes", 2)
    os.kill(agent_of(process), signal.SIGKILL)
    assert process.wait(60) == 1
    assert "torchrun, which watches the ranks, was killed by SIGKILL" in process.stderr.read()


def agent_of(process: subprocess.Popen) -> int:
    """The agent of a launcher, as soon as there is one."""
    while not (agents := children(process.pid)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return agents[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_two_interrupts_leave_at_once_and_leave_nothing_corrupt(
    processes: int, start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", processes, env=sabotaged(SLOW=HOURS))
    wait_for_step(run, 1, process)
    ranks = family(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    while "stopping: " not in process.stderr.readline():  # acknowledged while the step computes
        assert process.poll() is None
    assert process.poll() is None, "the first is for after the step"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_until_gone(ranks)
    assert [record["kind"] for record in records.read(run)] == ["event", "train", "event"]
    assert list_steps(run) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_many_micro_batches_is_left_between_two_of_them(
    processes: int, number: int, code: int, start, tmp_path: Path
) -> None:
    """It would take hours. Nothing was finished, so nothing is saved, and the next start begins again."""
    run = tmp_path / "run"
    slow = (*FOREVER, "--batch-tokens", 64 * 1_000_000, "--micro-batch", 1)
    process = start(run, *slow, "--processes", processes)
    while not events(run, "start"):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)  # it may be about to begin the step: then it ends, too, and says something else
    process.send_signal(number)
    assert process.wait(60) == code
    assert list_steps(run) == []


RANK = """
import os, time
from overnight.stop import Stop
os.environ["TORCHELASTIC_RUN_ID"] = "none"
with Stop():
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("gone", ["before", "after"])
def test_a_rank_that_missed_the_word_to_leave_sees_that_nobody_waits(gone: str, tmp_path: Path) -> None:
    """The launcher's folder and torchrun are gone: before the rank began, or between two of its looks."""
    folder = tmp_path / "launcher"
    environment = os.environ | {"OVERNIGHT_STOP_FOLDER": str(folder)}
    if gone == "after":
        folder.mkdir()
    line = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        if gone == "after":
            rank = int(parent.stdout.readline())
            folder.rmdir()
            time.sleep(1)
            assert status(rank) != "Z", "a folder cleaned away is no word to leave"
            parent.kill()
            wait_until_gone([rank], 20)
        assert parent.wait(20) == (-signal.SIGKILL if gone == "after" else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_of_somebody_elses_torchrun_leave_cleanly(number: int, start, tmp_path: Path) -> None:
    """SIGTERM it passes on; of SIGUSR1, which it does not know, it dies, and the ranks see that."""
    run = tmp_path / "run"
    process = start(run, *FOREVER, by=torchrun())
    wait_for_step(run, 5, process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.send_signal(number)
    process.wait(60)
    wait_until_gone(ranks)
    assert list(records.read(run))[-1]["name"] == "preempted"
    assert list_steps(run)[-1] == events(run, "preempted")[0]["step"]


def test_somebody_elses_torchrun_succeeds_when_its_ranks_were_asked_to_stop(start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--max-minutes", 0.05, by=torchrun())
    assert process.wait(60) == 0
    assert list(records.read(run))[-1]["name"] == "preempted"
