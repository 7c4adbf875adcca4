"""Ranks: asked to stop they save and leave together; killed, none is left behind and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.violence import (
    assert_same_end,
    children,
    command,
    events,
    kill,
    killed_at,
    sabotaged,
    wait_for_step,
)

from overnight import records
from overnight.saved import list_steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

SMALL = "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 ".split()
SMALL += "--batch-tokens 64 --optim.warmup-steps 2 --sample.length 10 --val-tokens 1500".split()
FOREVER = ["--steps", "1000000", "--eval-every", "0", "--sample-every", "0", "--save-every", "50"]
SHORT = "--steps 500 --eval-every 250 --sample-every 250 --save-every 20 --keep 1".split()


@pytest.fixture
def start(data_folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`start(run, *options, by=[...])`: train in the background; whatever is left at the end is killed."""
    begun: list[subprocess.Popen] = []

    def begin(
        run: Path, *more: object, by: tuple[str, ...] = (), env: dict | None = None
    ) -> subprocess.Popen:
        options = ["--data", data_folder, "--run", run, *SMALL, *more]
        line = [*by, *command("train", "shakespeare-cpu", *options)[2 if by else 0 :]]
        text = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(line, env=env, **text))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            kill(process, "everything")
        process.communicate()


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


def family(process: subprocess.Popen) -> list[int]:
    """torchrun and the ranks of a launcher."""
    torchruns = children(process.pid)
    return [*torchruns, *(rank for torchrun in torchruns for rank in children(torchrun))]


def wait_until_gone(pids: list[int], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in status(pid)]:
        assert time.monotonic() < until, f"left behind: {alive}"
        time.sleep(0.05)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


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
