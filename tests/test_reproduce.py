"""scripts/reproduce.sh: runs `overnight train` until it is done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import TINY

SCRIPT = Path(__file__).parent.parent / "scripts" / "reproduce.sh"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script")


def reproduce(folder: Path, *arguments: str, overnight: str = "") -> subprocess.CompletedProcess[str]:
    """The script, with `overnight` (a shell script; default: the real one) first on the path."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "overnight"
    real = f'exec {sys.executable} -m overnight "$@"'
    command.write_text(f"#!/bin/sh\n{overnight or real}\n")
    command.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [SCRIPT, *arguments], cwd=folder, env=os.environ | {"PATH": path, "PAUSE": "0"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_run_is_started_again_until_it_is_done(data_folder: Path, tmp_path: Path) -> None:
    """Each process has time for a step or so; the real command, and a run that ends."""
    arguments = [
        "shakespeare-cpu",
        *TINY,
        "--data",
        str(data_folder),
        "--run",
        "night",
        "--max-minutes",
        "0.0001",
    ]
    done = reproduce(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "runs/night/records.jsonl").read_text().splitlines()]
    events = [record["name"] for record in records if record["kind"] == "event"]
    assert events.count("start") + events.count("resume") >= 3
    assert events[-1] == "done"
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == sorted(set(steps)) == list(range(1, 5))


COUNT = "echo x >> calls; "


@pytest.mark.parametrize(
    ("overnight", "code", "calls"),
    [
        (COUNT + "exit 2", 2, 1),
        (COUNT + "exit 130", 130, 1),
        (COUNT + "exit 1", 1, 3),
        (COUNT + "kill -9 $$", 137, 3),
        (COUNT + "[ $(wc -l < calls) -ge 5 ] || exit 75", 0, 5),
        # Fails, but with a new checkpoint each time.
        (COUNT + "n=$(wc -l < calls); mkdir -p runs/p/checkpoints/step_0$n; [ $n -ge 6 ] || exit 1", 0, 6),
    ],
    ids=["wrong input", "Ctrl-C", "failure", "killed", "saved", "progress"],
)
def test_what_is_tried_again(overnight: str, code: int, calls: int, tmp_path: Path) -> None:
    done = reproduce(tmp_path, "p", overnight=overnight)
    assert (done.returncode, len((tmp_path / "calls").read_text().splitlines())) == (code, calls)


@pytest.mark.parametrize(
    ("options", "run"),
    [([], "runs/p"), (["--run", "x"], "runs/x"), (["--run=x"], "runs/x"), (["--run", "a/b"], "a/b")],
)
def test_it_looks_for_checkpoints_where_the_run_is(options: list[str], run: str, tmp_path: Path) -> None:
    saving = f"n=$(wc -l < calls); mkdir -p {run}/checkpoints/step_0$n; [ $n -ge 6 ] || exit 1"
    assert reproduce(tmp_path, "p", *options, overnight=COUNT + saving).returncode == 0


def test_without_a_preset_it_says_how(tmp_path: Path) -> None:
    done = reproduce(tmp_path)
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")
