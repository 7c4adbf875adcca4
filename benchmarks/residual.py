"""Whether the residual stream may be bf16: validation loss with it and with fp32, over some seeds.

    python benchmarks/residual.py [--device auto] [--steps 1000] [--seeds 3]

The quickstart's model and data, matrix products in bf16 either way. The difference between the two means has
to be read against how far seeds lie apart. Wants hardware that multiplies bf16.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from common import overnight, save
from overnight import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    losses: dict[str, list[float]] = {"low": [], "fp32": []}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        overnight("prepare", "stdlib", "--out", data)
        for seed in range(1, options.seeds + 1):
            for residual, found in losses.items():
                run = Path(name) / f"{residual}{seed}"
                overnight(
                    "train", "gpt2-quickstart", "--data", data, "--run", run, "--device", options.device,
                    "--precision", "bf16", "--model.residual", residual, "--seed", seed, "--eval-every", 0,
                    "--steps", options.steps, "--sample-every", 0, "--save-every", 0,
                )  # fmt: skip
                found.append(next(r["loss"] for r in records.read(run) if r["kind"] == "val"))
    means = {residual: statistics.mean(found) for residual, found in losses.items()}
    figures = {
        "steps": options.steps,
        "val_loss_bf16": [round(loss, 4) for loss in losses["low"]],
        "val_loss_fp32": [round(loss, 4) for loss in losses["fp32"]],
        "difference_of_means": round(means["low"] - means["fp32"], 5),
        "deviation_of_seeds": round(statistics.stdev(losses["fp32"]), 5),
    }
    save("residual", figures)


if __name__ == "__main__":
    main()
