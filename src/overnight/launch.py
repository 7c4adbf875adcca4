"""`train --processes N`: check first, then torchrun starts the ranks on this machine."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from overnight import records
from overnight.errors import DONE, FAILURE, INTERRUPTED, SAVED
from overnight.machine import cpu_count
from overnight.stop import STOP_FILE

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for every rank


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return UNDER_TORCHRUN in os.environ


def leave_quietly(code: int) -> int:
    """A rank's exit code: asked to stop and saved is no failure (see `torchrun`)."""
    return DONE if code in (SAVED, INTERRUPTED) else code


def torchrun(run: Path, processes: int, arguments: list[str]) -> int:
    """Run `overnight ARGUMENTS` in `processes` ranks; the exit code that one process would have had.

    torchrun turns every non-zero exit into a failure with a long report, so ranks that were asked to stop
    leave with 0 and the run's last event tells why.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # Behind "--" torchrun reads no options: it would take --run for an abbreviation of one of its own.
    command += ["-m", "--", "overnight", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        # torchrun answers a signal by ending its ranks, so signals come here only (the session is its own)
        # and the ranks find the word to stop in a file. Asked twice, torchrun is told after all.
        word = Path(folder) / "stop"
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
        environment = os.environ | {STOP_FILE: str(word), "OMP_NUM_THREADS": threads}
        asked: list[subprocess.Popen] = []

        def forward(number: int, _frame: object) -> None:
            if word.exists():
                for torchrun in asked:
                    torchrun.terminate()
            aside = word.with_suffix(".new")
            aside.write_text("interrupted" if number == signal.SIGINT else "preempted")
            os.replace(aside, word)

        names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the last two are not on Windows
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, forward) for number in numbers}
        try:
            asked.append(subprocess.Popen(command, start_new_session=True, env=environment))
            code = asked[0].wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        stopped = word.exists()
    last = [""] + [record["name"] for record in records.read(run) if record["kind"] == "event"]
    saved = {"interrupted": INTERRUPTED, "preempted": SAVED}.get(last[-1])
    if saved and (code == 0 or stopped):  # saved is saved, whatever happened to a rank on its way out
        return saved
    return DONE if code == 0 else FAILURE
