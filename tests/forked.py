"""Commands in processes of their own, forked from one that has imported torch: importing it takes seconds."""

import multiprocessing
import os
import sys
from pathlib import Path

from overnight import cli

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"overnight.{name}" for name in ("train", "resolve", "inspection", "evals.tasks", "report.page")]
)


def call(arguments: list[str], folder: Path, output: Path) -> None:
    """Call the command line in `folder`; what it prints, and the traceback of an error, goes to a file."""
    os.chdir(folder)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(cli.run(arguments))


def run_forked(arguments: list[str], output: Path, seconds: float = 120) -> int:
    """Return the exit code of a command, which must end within `seconds`."""
    process = FORKS.Process(target=call, args=(arguments, Path.cwd(), output))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"hangs: {' '.join(arguments)}")
    return process.exitcode
