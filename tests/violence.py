"""What tests/test_crash.py and benchmarks/crash.py share: runs that are killed, and what must be equal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight import records
from overnight.saved import OPTIMIZER, WEIGHTS, folder, list_steps

SABOTAGE = Path(__file__).parent / "sabotage"
UNTRUE_AFTER_A_STOP = {"time", "step_ms", "tokens_per_second", "mfu"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "overnight", *map(str, arguments)]


def killed_at(moment: str, rank: int = 0) -> dict[str, str]:
    """The environment in which a process kills itself at "MOMENT:N" (sabotage/sitecustomize.py)."""
    return sabotaged(KILL_AT=moment, KILL_RANK=str(rank))


def sabotaged(**orders: str) -> dict[str, str]:
    """The environment with orders for sabotage/sitecustomize.py."""
    path = os.pathsep.join([str(SABOTAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | orders


def measured(run: Path) -> list[dict]:
    """Records as they should be whatever happened on the way."""
    kept = [record for record in records.read(run) if record["kind"] != "event"]
    return [{key: record[key] for key in record.keys() - UNTRUE_AFTER_A_STOP} for record in kept]


def events(run: Path, name: str) -> list[dict]:
    return [r for r in records.read(run) if r["kind"] == "event" and r["name"] == name]


def newest(run: Path) -> Path:
    return folder(run, list_steps(run)[-1])


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, optimizer and records of two runs, bit for bit; every line of the records is whole."""
    assert newest(run).name == newest(whole).name
    for name in (WEIGHTS, OPTIMIZER):
        assert (newest(run) / name).read_bytes() == (newest(whole) / name).read_bytes(), name
    assert (run / records.FILE).read_bytes().endswith(b"\n")
    assert measured(run) == measured(whole)
    steps = [record["step"] for record in measured(run) if record["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1)), "a step is lost, or stands twice"


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until a training process has recorded that step."""
    while process.poll() is None:
        if any(r["kind"] == "train" and r["step"] >= step for r in records.read(run)):
            return
        time.sleep(0.01)
    errors = process.stderr.read() if process.stderr else ""
    raise AssertionError(f"ended with {process.returncode} before step {step}: {errors}")


def children(pid: int) -> list[int]:
    """The processes that a process started, as the system (Linux) has them now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return sorted(found)


def kill(process: subprocess.Popen, whom: str) -> None:
    """SIGKILL for the process itself, its "torchrun", one of its "rank"s (the last), or "everything"; for the
    process where those do not exist yet."""
    torchruns = children(process.pid)
    ranks = [rank for torchrun in torchruns for rank in children(torchrun)]
    victims = {
        "launcher": [process.pid],
        "torchrun": torchruns,
        "rank": ranks[-1:],
        "first rank": ranks[:1],
        "everything": [process.pid, *torchruns, *ranks],
    }[whom]
    for victim in victims or [process.pid]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:  # it died of another's death
            continue


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow over `limit` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
