"""How fast a config trains: the real engine on made-up tokens, in a process of its own, so that nothing that
ran before has a part in its memory or in what its libraries have chosen. (What torch.compile keeps on the
disk is shared: the same graph starts faster the second time.)

Parent: `measure`. Child: `python -m overnight.stopwatch`, a job on stdin, the result in its last line.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch

from overnight import machine, world
from overnight.config import Config
from overnight.data.batches import Batches
from overnight.data.shards import Tokens
from overnight.described import from_dict
from overnight.errors import Failure, UserError
from overnight.memory import first_line
from overnight.models.networks import build
from overnight.step import Engine, frozen_garbage
from overnight.world import Reading, World

WARM_UP, LEAST = 3, 5  # steps: not counted; counted, however long they take
TOKENS = 1 << 20


@dataclass(frozen=True)
class Measured:
    """What a config's steps took."""

    step_ms: list[float]
    """Milliseconds of each step behind the warm-up."""
    loss: float
    """Of step `warm_up` + `least`: what the same mathematics must agree on, however it is computed."""
    peak_memory: int | None
    """Bytes: allocated on the GPU, or resident in the process; None where the system does not tell."""
    start_seconds: float
    """From the model to the end of the first step: compiling, and choosing kernels."""

    @property
    def ms(self) -> float:
        return median(self.step_ms)


def measure(
    config: Config, n_tokens: int, steps: int, seconds: float, warm_up: int = WARM_UP, least: int = LEAST
) -> Measured:
    """Time at most `steps` steps of a resolved config, for about `seconds`, in a process of its own; at least
    `least` steps, behind `warm_up` steps that do not count.

    n_tokens: ids that the tokens are drawn from. Raises Failure with the reason where it does not work here.
    """
    job = {"config": asdict(config), "n_tokens": n_tokens, "steps": steps, "seconds": seconds}
    job |= {"warm_up": warm_up, "least": least}
    command = [sys.executable, "-m", "overnight.stopwatch"]
    child = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    if child.returncode:
        said = child.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        by = f"killed by signal {-child.returncode}" if child.returncode < 0 else said[0][:200]
        raise Failure(by)
    return Measured(**json.loads(child.stdout.splitlines()[-1]))


def tokens(n_tokens: int, count: int = TOKENS) -> Tokens:
    """Made-up ones, small ids more often than large ones, so that there is something to learn."""
    draw = np.random.default_rng(1).random(count) ** 4
    return Tokens([(draw * n_tokens).astype(np.int64)])


def watch(
    config: Config, n_tokens: int, steps: int, seconds: float, warm_up: int, least: int, here: World
) -> Measured:
    """What `measure` returns, measured in this process."""
    batches = Batches(tokens(n_tokens), config.model.block_size, config.sequences, config.seed)
    began = perf_counter()
    engine = Engine(build(config.model, n_tokens).init_weights(config.seed), config, batches, here, give_up)
    numbers, clock, start_seconds = deque[Reading](), perf_counter(), 0.0
    took, losses = list[float](), list[float]()

    def enough() -> bool:
        counted = took[warm_up:]
        return len(counted) >= least and (len(counted) >= steps or sum(counted) > seconds)

    with closing(engine), frozen_garbage():
        while not enough():
            numbers.append(Reading(torch.stack(engine.update(len(took) + len(numbers) + 1))))
            if len(numbers) <= here.lag:  # as in a run, a GPU always has the next step to do
                continue
            losses.append(numbers.popleft().get()[0])
            took.append(perf_counter() - clock)
            clock = perf_counter()
            start_seconds = start_seconds or clock - began
    cuda = here.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else machine.peak_memory()
    milliseconds = [round(1000 * one, 3) for one in took[warm_up:]]
    return Measured(milliseconds, losses[warm_up + least - 1], peak, round(start_seconds, 2))


def give_up(line: str) -> None:
    """What an engine says is that something of its config does not work here."""
    raise Failure(line)


def work(job: dict[str, Any]) -> Measured:
    """A job as `measure` writes it."""
    config = from_dict(job.pop("config"), "to be measured")
    with world.connect(config.device) as here:
        return watch(config, **job, here=here)


def end_with_parent(parent: int) -> None:
    """Who is killed cannot end its children."""
    while os.getppid() == parent:
        sleep(0.5)
    os._exit(1)


def main(read: Callable[[], str] = sys.stdin.read) -> int:
    Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        print(json.dumps(asdict(work(json.loads(read())))))
    except (RuntimeError, MemoryError, UserError) as error:
        print(first_line(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
