"""nanoGPT's CPU run of character-level Shakespeare, as a user runs it: `prepare`, then `train`.

python benchmarks/shakespeare.py PATH     PATH: tinyshakespeare.txt (input.txt of char-rnn)
"""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

from common import overnight, save
from overnight import records


def main(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        data, run = Path(name) / "data", Path(name) / "run"
        overnight("prepare", f"text:{text}", "--tokenizer", "char", "--out", data)
        began = perf_counter()
        overnight("train", "shakespeare-cpu", "--data", data, "--run", run)
        seconds = perf_counter() - began
        found = list(records.read(run))
    val = [record for record in found if record["kind"] == "val"][-1]
    steps = sorted(record["step_ms"] for record in found if record["kind"] == "train")
    figures = {
        "seconds_in_all": round(seconds, 1),
        "val_loss": round(val["loss"], 4),
        "val_tokens": val["val_tokens"],
        "bits_per_byte": round(val["bits_per_byte"], 4),
        "step_ms_median": steps[len(steps) // 2],
    }
    save("shakespeare", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
