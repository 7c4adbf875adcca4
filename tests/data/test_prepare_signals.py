"""`overnight prepare` as a process that is killed, interrupted or terminated."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.data.small_corpus import contents

from overnight.data.prepare import prepare

# A shell that starts pytest in the background has its children ignore Ctrl-C: undo that.
OVERNIGHT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from overnight.cli import main
main()
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SOURCE that takes GPT-2's tokenizer a second or more: one document of 6 MB."""
    path = tmp_path_factory.mktemp("novel") / "novel.txt"
    words = random.Random(0).choices(
        ["the ", "quick ", "brown ", "fox's ", "jumps, ", "1234 ", "año\n"], k=10**5
    )
    path.write_text("".join(words) * 10)
    return f"text:{path}"


@contextlib.contextmanager
def started(source: str, out: Path, until: Callable[[int], bool]) -> Iterator[subprocess.Popen]:
    """`overnight prepare` in a session of its own, come as far as `until` (told its process id) says."""
    command = [sys.executable, "-c", OVERNIGHT, "prepare", source, "--out", str(out)]
    command += ["--tokenizer", "gpt2", "--workers", "1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        while not until(process.pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def writing(out: Path) -> Callable[[int], bool]:
    """Whether a shard is being written."""
    return lambda _: any(out.with_name(f".{out.name}.partial").glob("*.bin"))


@POSIX
def test_a_killed_prepare_goes_on(novel: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    for _ in range(2):
        with started(novel, out, writing(out)) as process:
            process.kill()
            process.wait()
            assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]
    prepare(novel, out, "gpt2", 2, 10**8)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    prepare(novel, tmp_path / "undisturbed", "gpt2", 2, 10**8)
    assert contents(out) == contents(tmp_path / "undisturbed")


@POSIX
def test_a_killed_prepare_leaves_no_workers_behind(novel: str, tmp_path: Path) -> None:
    """Its output stays open as long as any of them lives."""
    out = tmp_path / "data"
    with started(novel, out, writing(out)) as process:
        process.kill()
        process.communicate(timeout=10)


@POSIX
@pytest.mark.parametrize(
    ("stop", "number", "code", "says"),
    [
        (os.killpg, signal.SIGINT, 130, "interrupted"),
        (os.kill, signal.SIGINT, 130, "interrupted"),
        (os.kill, signal.SIGTERM, 75, "stopped by SIGTERM."),
        (os.killpg, signal.SIGTERM, 75, "stopped by SIGTERM."),
    ],
    ids=["Ctrl-C", "SIGINT", "SIGTERM", "SIGTERM to all"],
)
def test_an_interrupted_prepare_says_how_to_go_on(
    stop: Callable[[int, int], None], number: int, code: int, says: str, novel: str, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "red\x1b[31m"  # which must not turn the terminal red
    with started(novel, out, writing(out)) as process:
        stop(process.pid, number)
        partial = f"{out.parent}/.red\u241b[31m.partial"
        kept = f"What is done is kept in {partial}: the same command goes on from there.\n"
        assert process.communicate(timeout=30) == ("", f"{kept}overnight: {says}\n")
        assert process.returncode == code
    assert prepare(novel, out, "gpt2", 2, 10**8).manifest.documents == 1


def children(parent: int) -> Path:
    """Linux's list of the processes that a process has started."""
    return Path(f"/proc/{parent}/task/{parent}/children")


def worker_begins(parent: int) -> bool:
    """Whether a process has a worker that is still importing what it needs."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")  # workers are started by threads
    started = [Path("/proc", child) for path in lists for child in path.read_text().split()]
    workers = [child for child in started if b"spawn_main" in (child / "cmdline").read_bytes()]
    return any("numpy" in (worker / "maps").read_text() for worker in workers)


@pytest.mark.skipif(not children(os.getpid()).exists(), reason="needs Linux's list of child processes")
def test_ctrl_c_while_workers_start_is_no_traceback(novel: str, tmp_path: Path) -> None:
    with started(novel, tmp_path / "data", worker_begins) as process:
        os.killpg(process.pid, signal.SIGINT)
        said, error = process.communicate(timeout=30)
        assert (said, error.splitlines()[-1]) == ("", "overnight: interrupted")
        assert "Traceback" not in error, error
        assert process.returncode == 130
