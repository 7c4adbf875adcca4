"""What `make quickstart` does after the install, timed: prepare, train, evaluate, sample.

python benchmarks/quickstart.py
"""

import json
import tempfile
from pathlib import Path
from time import perf_counter

from common import overnight, save
from overnight import records


def main() -> None:
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        data, run = Path(name) / "data", Path(name) / "run"
        work = {
            "prepare": ("prepare", "stdlib", "--out", data),
            "train": ("train", "quickstart", "--data", data, "--run", run),
            "eval": ("eval", run, "--json"),
            "sample": ("sample", run, "--prompt", "def main(", "--samples", 2, "--length", 120),
        }
        printed = {}
        for verb, arguments in work.items():
            began = perf_counter()
            printed[verb] = overnight(*arguments)
            seconds[verb] = round(perf_counter() - began, 1)
        steps = sorted(r["step_ms"] for r in records.read(run) if r["kind"] == "train")
    val = json.loads(printed["eval"])["val"]
    figures = {
        "seconds": seconds,
        "seconds_in_all": round(sum(seconds.values()), 1),
        "step_ms_median": steps[len(steps) // 2],
        "bits_per_byte": round(val["bits_per_byte"], 4),
        "val_loss": round(val["loss"], 4),
        "val_tokens": val["tokens"],
    }
    save("quickstart", figures)


if __name__ == "__main__":
    main()
