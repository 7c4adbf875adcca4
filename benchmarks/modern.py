"""GPT-2's recipe and the modern one: the same data, the same machine, in turn; seeds 1 to 4.

    python benchmarks/modern.py TEXT [--seeds 4]     TEXT: tinyshakespeare.txt

Shakespeare: seconds from the start of the process to its end, imports, data, validations, sample and verdict
included, and the loss over the whole validation split. The quickstart's data: bits per byte, and the time
that training took.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from common import overnight, progress, save
from overnight import records

GOAL = 1.898  # nanoGPT's README run, by this project's definition of a validation loss; 141 s


def train(preset: str, data: Path, run: Path, seed: int) -> dict[str, float]:
    """One run in a process of its own."""
    began = perf_counter()
    overnight("train", preset, "--data", data, "--run", run, "--seed", seed)
    seconds = perf_counter() - began
    found = list(records.read(run))
    val = [record for record in found if record["kind"] == "val"][-1]
    steps = [record["step_ms"] for record in found if record["kind"] == "train"]
    told = {
        "seconds": round(seconds, 1),
        "training_seconds": round(sum(steps) / 1000, 1),
        "step_ms": round(statistics.median(steps), 1),
        "loss": round(val["loss"], 4),
        "bits_per_byte": round(val["bits_per_byte"], 4),
    }
    progress(f"{preset}, seed {seed}: {told}")
    return told


def compared(presets: list[str], data: Path, seeds: int) -> dict[str, Any]:
    """Every preset with every seed, in turn."""
    found: dict[str, list[dict[str, float]]] = {preset: [] for preset in presets}
    for seed in range(1, seeds + 1):
        for preset, runs in found.items():
            runs.append(train(preset, data, data.parent / f"{preset}-{seed}", seed))
    return {
        preset: {name: [run[name] for run in runs] for name in runs[0]}
        | {f"median_{name}": round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
        for preset, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shakespeare, stdlib = Path(name) / "shakespeare", Path(name) / "stdlib"
        overnight("prepare", f"text:{options.text}", "--tokenizer", "char", "--out", shakespeare)
        overnight("prepare", "stdlib", "--out", stdlib)
        figures = {"seeds": options.seeds, "goal": GOAL}
        figures |= compared(["shakespeare-cpu", "modern-shakespeare-cpu"], shakespeare, options.seeds)
        figures |= compared(["gpt2-quickstart", "modern-quickstart"], stdlib, options.seeds)
    save("modern", figures)


if __name__ == "__main__":
    main()
