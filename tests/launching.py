"""Training processes in the background, with ranks, and their process numbers."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.violence import children, command, kill

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
