"""A run's lock: one holder, named; gone with its process, whatever its children do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overnight import lock
from overnight.errors import UserError
from overnight.lock import FILE, Lock

HOLD = "import sys, time; from overnight.lock import Lock; from pathlib import Path\n"
HOLD += "with Lock(Path(sys.argv[1])): print('held', flush=True); {then}; time.sleep(60)"


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GRACE", 0.2)


def holder(run: Path, then: str = "pass") -> subprocess.Popen:
    """Another process that has the lock."""
    line = [sys.executable, "-c", HOLD.format(then=then), run]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_with_the_holders_name(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(UserError) as refused, Lock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    host = os.uname().nodename
    assert str(refused.value).startswith(f"{tmp_path} is being trained by process {process.pid} on {host}.\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_lives_on_does_not_keep_it(tmp_path: Path) -> None:
    """What a killed process leaves behind: its file, and perhaps a child with its open files."""
    process = holder(tmp_path, then="import os; child = os.fork(); child and print(child, flush=True)")
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert (tmp_path / FILE).exists()
        os.kill(child, 0)  # alive
        with Lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / FILE).read_text()
        assert not (tmp_path / FILE).exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_it_is_waited_for_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GRACE", 30.0)
    process = holder(tmp_path, then="time.sleep(0.5); sys.exit()")
    began = time.monotonic()
    with Lock(tmp_path):
        assert time.monotonic() - began < 25
    assert process.wait() == 0


def test_taken_twice_by_one_process_it_is_one_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Lock(run) as held:  # a new run has no folder yet
        run.mkdir()
        assert held.take()
        assert not held.take()
    assert list(run.iterdir()) == []
    held.release()  # nothing left to give up


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match=r"^locking .*: Is a directory: .*\.$"), Lock(tmp_path):
        pass
