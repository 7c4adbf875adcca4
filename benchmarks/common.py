"""What every benchmark shares: the machine it ran on, medians, and where results go."""

import contextlib
import json
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from tables import RESULTS


def machine() -> dict[str, Any]:
    """Enough to know whether two figures may be compared."""
    import torch

    from overnight.environment import environment

    here = environment()
    kept = ("time", "python", "torch", "cpu", "cpus", "threads", "gpus", "git")
    return {name: here[name] for name in kept} | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def save(name: str, figures: dict[str, Any], quiet: bool = False) -> None:
    """Print the figures, unless quiet, and write benchmarks/results/NAME.json."""
    command = " ".join(Path(word).name for word in sys.argv)  # where files lie is nobody's business
    result = {"benchmark": name, "command": command, "machine": machine(), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    if not quiet:
        print(json.dumps(figures, indent=2))


def alternate(work: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each piece of work, run in turn, so that a machine whose speed drifts is fair to all."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(warm_up + rounds):
        for name, run in work.items():
            began = perf_counter()
            run()
            if number >= warm_up:
                seconds[name].append(perf_counter() - began)
    return seconds


def in_turn(
    make: dict[str, Callable[[], Callable[[], object]]],
    rounds: int,
    each: int = 1,
    warm_up: int = 1,
    patience: float = 900.0,
) -> dict[str, list[float]]:
    """Seconds of each piece of work, in processes of their own and in turn: `rounds` times `each` runs of
    one, then of the next. make: what makes the work, in its process; it has to be picklable. Raises
    RuntimeError with the reason where one fails or is silent for `patience` seconds."""
    spawn = multiprocessing.get_context("spawn")
    workers = {}
    for name, maker in make.items():
        here, there = spawn.Pipe()
        process = spawn.Process(target=serve, args=(maker, there), daemon=True)
        process.start()
        there.close()
        workers[name] = process, here
    seconds: dict[str, list[float]] = {name: [] for name in make}
    try:
        for number in range(-1, rounds):
            for name, (_, pipe) in workers.items():
                took = ask(pipe, warm_up if number < 0 else each, patience)
                if isinstance(took, str):
                    raise RuntimeError(f"{name}: {took}")
                seconds[name] += took if number >= 0 else []
                progress(f"{name}: {1000 * statistics.median(took):,.1f} ms")
    finally:
        for process, _ in workers.values():
            process.kill()
            process.join()
    return seconds


def ask(pipe: Any, count: int, patience: float) -> list[float] | str:
    """The seconds of `count` runs on the other side, or why there are none."""
    with contextlib.suppress(OSError):  # it may be gone already, and have said why
        pipe.send(count)
    try:
        return pipe.recv() if pipe.poll(patience) else "no time was left"
    except (EOFError, OSError):
        return "its process died"


def serve(make: Callable[[], Callable[[], object]], pipe: Any) -> None:
    """The other side of `in_turn`, until it is killed."""
    try:
        work = make()
        while count := pipe.recv():
            took = []
            for _ in range(count):
                began = perf_counter()
                work()
                took.append(perf_counter() - began)
            pipe.send(took)
    except Exception as error:  # whatever it is, the other side tells
        reason = next(iter(str(error).splitlines()), "")
        pipe.send(f"{type(error).__name__}: {reason}")


def progress(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def summary(seconds: list[float], scale: float = 1000.0) -> dict[str, float]:
    """Median, first tenth, least and most, in milliseconds unless told."""
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(seconds) * scale, 3),
        "tenth": round(ordered[len(ordered) // 10] * scale, 3),
        "min": round(min(seconds) * scale, 3),
        "max": round(max(seconds) * scale, 3),
    }


def last_step(run: Path) -> int:
    """The newest step in a run's records."""
    from overnight import records

    return max((r["step"] for r in records.read(run) if r["kind"] == "train"), default=0)


def overnight(*arguments: object) -> str:
    """Run the command in a process of its own; what it printed."""
    command = [sys.executable, "-m", "overnight", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
