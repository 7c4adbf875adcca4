"""`train --processes N`: check first, then torchrun starts the ranks on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from overnight import records
from overnight.errors import DONE, FAILURE, INTERRUPTED, SAVED, WRONG_INPUT
from overnight.launcher_folder import launcher_folder
from overnight.lock import GRACE, Lock
from overnight.machine import cpu_count, signal_name
from overnight.private import use_private_folders
from overnight.stop import NOW, SAVED_FIRST, STOP_FOLDER, WORD, WORDS, acknowledge, signals
from overnight.terminal import complain


def leave_quietly(code: int) -> int:
    """A rank's exit code: asked to stop and saved is no failure (see `torchrun`)."""
    return DONE if code in (SAVED, INTERRUPTED) else code


def torchrun(run: Path, processes: int, max_restarts: int, arguments: list[str]) -> int:
    """Run `overnight ARGUMENTS` in `processes` ranks; the exit code that one process would have had.

    torchrun turns every non-zero exit into a failure, so ranks that were asked to stop leave with 0 and the
    run's last event tells why. It answers a signal by ending its ranks, so signals come here only (the
    session is its own), and the ranks find the word to stop in a file.
    """
    use_private_folders()  # its ranks inherit them
    command = [sys.executable, "-m", "overnight.agent", "--nnodes=1", f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={max_restarts}", "-m", "--", "overnight", *arguments]
    with launcher_folder(write_words) as folder:
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
        environment = os.environ | {STOP_FOLDER: str(folder), "OMP_NUM_THREADS": threads}
        agents: list[subprocess.Popen] = []
        words: list[str] = []

        def pass_on(number: int, _frame: object) -> None:
            word = "interrupted" if number == signal.SIGINT else "preempted"
            if word == "interrupted" and word in words:
                tell(folder, NOW)
                for agent in agents:
                    agent.kill()
            elif not words:
                if not tell(folder, word):  # the cache was emptied: torchrun passes it to the ranks
                    for agent in agents:
                        agent.send_signal(number)
                acknowledge(SAVED_FIRST)
            words.append(word)

        records_before = stamp(run)
        before = {number: signal.signal(number, pass_on) for number in signals()}
        wakeup = signal.set_wakeup_fd(-1)  # of `Stop`, which has received signals up to now
        try:
            with blocked_signals():  # until the agent has imported its handlers
                agents.append(subprocess.Popen(command, start_new_session=True, env=environment))
            code = agents[0].wait()
            if code < 0:
                wait_for_ranks(run, GRACE if words.count("interrupted") > 1 else float("inf"))
        finally:
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
            for number, handler in before.items():
                signal.signal(number, handler)
    if words.count("interrupted") > 1:
        return INTERRUPTED
    if code < 0 and not words:
        complain(f"overnight: torchrun, which watches the ranks, was killed by {signal_name(-code)}.")
    codes = {"interrupted": INTERRUPTED, "preempted": SAVED}
    if stamp(run) == records_before:  # the ranks did not get as far as their first record
        if words and code != WRONG_INPUT:
            return codes[words[0]]
    else:
        last = [""] + [record["name"] for record in records.sound(run) if record["kind"] == "event"]
        if last[-1] in codes and (code in (DONE, SAVED) or code < 0 or words):
            return codes[last[-1]]  # whatever happened to a rank on its way out
    return code if code >= 0 else FAILURE


def stamp(run: Path) -> tuple[int, ...]:
    """Inode, size and time of a run's records, which change when a record is written; () without records."""
    try:
        status = os.stat(run / records.FILE)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals to stop in processes that are started in here, until they unblock them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_ranks(run: Path, seconds: float) -> None:
    """Killed, torchrun leaves its ranks behind; they see it, and save when their step is done."""
    lock = Lock(run)
    if run.is_dir() and lock.wait(seconds):
        lock.release()


def write_words(folder: Path) -> None:
    """Write what the ranks may have to be told now, while there is room for sure."""
    for word in WORDS:
        (folder / f"{word}.new").write_text(word)


def tell(folder: Path, word: str) -> bool:
    """Leave the ranks a word; whether the folder took it."""
    try:
        os.replace(folder / f"{word}.new", folder / WORD)
    except OSError:
        return False
    return True
