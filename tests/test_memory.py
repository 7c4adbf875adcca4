"""Memory while a run trains: where it is too small, and that it does not grow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.short_run import options
from tests.violence import command

from overnight import cli, runs, train


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")
def test_out_of_memory_names_the_micro_batch_that_fits(data_folder: Path, tmp_path: Path) -> None:
    """A real limit on a real process; what the message says is done, and then it fits."""
    run = tmp_path / "run"
    big = "--device cpu --model.n-layer 20 --model.n-head 4 --model.n-embd 256 --model.block-size 16"
    big += " --batch-tokens 16384 --steps 1 --eval-every 0 --sample.length 1"
    line = command("train", "shakespeare-cpu", "--data", data_folder, "--run", run, *big.split())

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))

    def attempt(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*line, *more], preexec_fn=limited, capture_output=True, text=True)

    failed = attempt("--micro-batch", "1024")
    assert failed.returncode == 1, failed.stderr
    assert "overnight: out of memory on cpu with --micro-batch 1024" in failed.stderr
    assert "Traceback" not in failed.stderr
    fits = failed.stderr.partition("Give --micro-batch ")[2].split()[0]
    assert 1 <= int(fits) < 1024
    done = attempt("--micro-batch", fits)
    assert done.returncode == 0, done.stderr
    assert runs.read_config(run)[0].micro_batch == int(fits)


def test_memory_does_not_grow_with_the_steps(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long form, over 10,000 steps, is in benchmarks/saving.py."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    sizes, intact = {}, train.Session.update

    def update(self: train.Session, step: int) -> str:
        sizes[step] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return intact(self, step)

    monkeypatch.setattr(train.Session, "update", update)
    long = ["--steps", 2000, "--eval-every", 200, "--save-every", 100, "--sample-every", 500]
    assert cli.run(options(data_folder, tmp_path / "run", *long)) == 0
    assert sizes[2000] - sizes[800] < 3 << 20, "1,200 steps may not cost 2.5 kB each"
