"""What a checkpoint costs a run: the time that training loses around one, as a share of 250 steps; how soon a
resumed run makes its first step; with --memory, that memory does not grow over 10,000 steps.

python benchmarks/saving.py [--device auto] [--batch-tokens 64] [--memory]     GPT-2 124M
"""

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common import last_step, overnight, save
from overnight import records
from overnight.saved import list_steps

SAVE_EVERY, SAVES = 40, 2
INTERVAL = 250  # steps between checkpoints of the preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=64, help="few, so that a step is fast")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "text.txt").write_text("".join(f"The night has {n} steps.\n" for n in range(100_000)))
        overnight("prepare", f"text:{place / 'text.txt'}", "--out", place / "gpt2", "--tokenizer", "gpt2")
        overnight("prepare", f"text:{place / 'text.txt'}", "--out", place / "char", "--tokenizer", "char")
        save("saving", saving(place, options.device, options.batch_tokens))
        if options.memory:
            save("memory", memory(place))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "overnight", "train", *map(str, arguments)]


def saving(place: Path, device: str, batch_tokens: int) -> dict[str, Any]:
    """Some checkpoints of GPT-2 124M while it trains with a fast step, then a resume."""
    run, block = place / "run", min(64, batch_tokens)
    train = ["gpt2-124m", "--data", place / "gpt2", "--run", run, "--device", device, "--eval-every", 0]
    train += ["--batch-tokens", batch_tokens, "--model.block-size", block]
    train += ["--save-every", SAVE_EVERY, "--keep", 1]
    train += ["--hellaswag-every", 0, "--sample-every", 0, "--steps", 100_000]
    process = subprocess.Popen(command(*train), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = SAVES * SAVE_EVERY
    enough = last + SAVE_EVERY - 2
    while last not in published_at(run) or last_step(run) < enough:
        if last not in published_at(run):  # the disk may be slower than the steps
            enough = max(enough, last_step(run) + 10)
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    gaps = step_seconds(run)
    published = published_at(run)
    ended = {r["step"]: when(r) for r in records.read(run) if r["kind"] == "train"}
    lost, quiet = [], []
    for saved in range(SAVE_EVERY, last + 1, SAVE_EVERY):
        # The wait for the copy lies between this step's record and the next; while the file is written, steps
        # may take longer. What they would have taken is what those before and behind it took.
        until = next(step for step in ended if step > saved and ended[step] >= published[saved]) + 1
        around = [*range(saved - 8, saved + 1), *range(until + 1, saved + SAVE_EVERY - 8)]
        usual = statistics.median(gaps[step] for step in around)
        quiet.append(usual)
        lost.append(sum(gaps[step] - usual for step in range(saved + 1, until + 1)))
    usual = statistics.median(quiet)
    began = datetime.now().astimezone()
    process = subprocess.Popen(command(*train), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    resumed = list_steps(run)[-1]
    while not any(
        when(r) > began for r in records.read(run) if r["kind"] == "train" and r["step"] == resumed + 1
    ):
        time.sleep(0.05)
    first_step = next(
        (when(r) - began).total_seconds()
        for r in records.read(run)
        if r["kind"] == "train" and r["step"] == resumed + 1
    )
    process.kill()
    process.wait()
    return {
        "step_seconds": round(usual, 4),
        "seconds_lost_by_each_save": [round(seconds, 3) for seconds in lost],
        "percent_of_250_steps": round(100 * statistics.median(lost) / (INTERVAL * usual), 2),
        "percent_of_250_steps_of_one_second": round(100 * statistics.median(lost) / INTERVAL, 2),
        "resume_to_first_step_seconds": round(first_step, 1),
    }


def published_at(run: Path) -> dict[int, datetime]:
    """When each checkpoint was on the disk."""
    if not (run / records.FILE).exists():
        return {}
    found = [r for r in records.read(run) if r["kind"] == "event" and r["name"] == "checkpoint"]
    return {r["step"]: when(r) for r in found}


def step_seconds(run: Path) -> dict[int, float]:
    """Wall time from one step's record to the next's."""
    steps = [(r["step"], when(r)) for r in records.read(run) if r["kind"] == "train"]
    return {step: (now - before).total_seconds() for (_, before), (step, now) in itertools.pairwise(steps)}


def when(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["time"].replace("Z", "+00:00"))


def memory(place: Path) -> dict[str, Any]:
    """Resident memory at 1,000 and 10,000 steps, with validations, samples and checkpoints between."""
    run = place / "long"
    small = "--device cpu --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --model.block-size 32".split()
    small += "--batch-tokens 128 --steps 10100 --eval-every 200 --val-tokens 2000 --sample-every 500".split()
    train = ["shakespeare-cpu", "--data", place / "char", "--run", run, *small, "--save-every", 100]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*train), env=environment, stdout=subprocess.DEVNULL)
    sizes: dict[int, int] = {}
    for step in range(1000, 10_001, 1000):
        while last_step(run) < step:
            time.sleep(0.1)
            assert process.poll() is None
        sizes[step] = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    assert process.wait() == 0
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        "resident_mb_at_1000": round(sizes[1000] * page / 1e6, 1),
        "resident_mb_at_10000": round(sizes[10_000] * page / 1e6, 1),
        "growth_mb": round((sizes[10_000] - sizes[1000]) * page / 1e6, 1),
    }


if __name__ == "__main__":
    main()
