"""Ranks that die or fall silent: none of the others is left behind, and the run resumes or is restarted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.launching import FOREVER, SHORT, SMALL, family, start, wait_until_gone
from tests.violence import assert_same_end, command, events, kill, killed_at, sabotaged, wait_for_step

from overnight import records

__all__ = ["start"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.mark.parametrize("whom", ["rank", "first rank"])
def test_a_rank_that_dies_ends_the_others_and_is_named(whom: str, start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2)
    wait_for_step(run, 5, process)
    ranks, began = family(process), time.monotonic()
    kill(process, whom)
    assert process.wait(60) == 1
    wait_until_gone(ranks)
    assert time.monotonic() - began < 60
    rank = 1 if whom == "rank" else 0
    error = process.stderr.read()
    assert f"overnight: rank {rank} (process " in error
    assert "was killed by SIGKILL" in error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def whole(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    options = ["--data", data_folder, "--run", run, *SMALL, *SHORT, "--processes", 2]
    assert subprocess.run(command("train", "shakespeare-cpu", *options), capture_output=True).returncode == 0
    return run


@pytest.mark.parametrize("whom", ["launcher", "torchrun", "everything"])
def test_whoever_is_killed_the_next_start_goes_on(whom: str, start, whole: Path, tmp_path: Path) -> None:
    """At once, while ranks of the first may still be there; to the same end as a run that nobody stopped."""
    run = tmp_path / "run"
    process = start(run, *SHORT, "--processes", 2)
    wait_for_step(run, 42, process)
    kill(process, whom)
    assert process.wait(60) == (75 if whom == "torchrun" else -signal.SIGKILL), "orphans save and leave"
    again = start(run, *SHORT, "--processes", 2)
    assert again.wait(60) == 0, again.stderr.read()
    assert events(run, "resume")[0]["step"] > 0
    assert_same_end(run, whole)


def test_a_rank_that_falls_silent_is_given_up(start, tmp_path: Path) -> None:
    """As one whose host is lost: no connection breaks, nothing comes any more."""
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2, env=sabotaged(SET="overnight.heartbeat:SILENCE=10"))
    wait_for_step(run, 5, process)
    ranks = family(process)
    os.kill(ranks[-1], signal.SIGSTOP)
    try:
        wait_until_gone(ranks[-2:-1], 300)
        os.kill(ranks[-1], signal.SIGKILL)  # torchrun ends the stopped one only after half a minute
        assert process.wait(300) == 1
    finally:
        wait_until_gone(ranks, 300)
    silent = f"rank 1 on {os.uname().nodename} has not responded for 10 s, so rank 0 ends."
    assert f"overnight: {silent}" in process.stderr.read()


def test_ranks_that_were_all_stopped_go_on(start, tmp_path: Path) -> None:
    """As Slurm suspends and resumes a job: each finds that the others, and itself, were silent for long."""
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2, env=sabotaged(SET="overnight.heartbeat:SILENCE=10"))
    wait_for_step(run, 5, process)
    everybody = [process.pid, *family(process)]
    for _ in range(2):
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGSTOP)
        last = max(r["step"] for r in records.read(run) if r["kind"] == "train")
        time.sleep(15)  # what is tested
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        wait_for_step(run, last + 500, process)
        until = time.monotonic() + 5  # two looks of each at the other
        while time.monotonic() < until:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    assert [process.pid, *family(process)] == everybody
    assert events(run, "resume") == []


def test_max_restarts_resume_by_themselves(start, whole: Path, tmp_path: Path) -> None:
    """A rank kills itself in its 203rd step, and so it does when it has begun again: behind step 180 and
    behind step 360."""
    run = tmp_path / "run"
    process = start(run, *SHORT, "--processes", 2, "--max-restarts", 2, env=killed_at("update:203", rank=1))
    assert process.wait(90) == 0, process.stderr.read()
    found = [(event["step"], event["detail"]["restarts"]) for event in events(run, "resume")]
    assert found == [(200, 1), (400, 2)]
    assert_same_end(run, whole)


def test_what_is_wrong_each_time_is_not_begun_again(start, tmp_path: Path) -> None:
    """A rank that gives up has had its second try; --max-restarts is for ranks that die."""
    run = tmp_path / "run"
    nan = sabotaged(NAN_IN=" ".join(map(str, range(3, 60))))
    bad = ["--steps", 40, "--eval-every", 0, "--train.max-bad-steps", 3]
    process = start(run, *bad, "--processes", 1, "--max-restarts", 2, env=nan)
    assert process.wait(60) == 1
    assert len(events(run, "gave_up")) == 1
    assert process.stderr.read().count("giving up.") == 1


def test_a_second_process_is_refused_by_name_and_the_lock_dies_with_its_owner(start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *FOREVER, "--processes", 2)
    wait_for_step(run, 2, process)
    before = (run / "config.json").read_bytes()
    for more in ((), ("--processes", 2)):
        second = start(run, *FOREVER, *more)
        assert second.wait(60) == 2
        error = second.stderr.read()
        holder = [pid for pid in family(process) if f"by process {pid} on {os.uname().nodename}." in error]
        assert len(holder) == 1, error
        assert error.count("\n") == 2
    assert process.poll() is None
    assert (run / "config.json").read_bytes() == before
    kill(process, "everything")
    process.wait()
    third = start(run, *FOREVER, "--max-minutes", 0.01)
    assert third.wait(60) == 75, third.stderr.read()
