"""How many tokens GPT-2's recipe and the modern one need for the same loss: 124M parameters, one GPU, a
corpus that is on the machine already.

    python benchmarks/crossing.py [--data FOLDER] [--only NAME ...]

FOLDER is where the corpus is or shall be; the runs lie beside it, and go on where they were stopped.

The corpus is the source code and documentation of what is installed here, up to 400 MB, each text once. Both
see the same windows in the same order and are measured over the same validation tokens. Each ends a schedule
of its own: GPT-2's after 100 M tokens, the modern one after half of them. Steps have 131,072 tokens in place
of 524,288, for both, or there would be 95 of them. `--small` runs all of it at toy sizes, on a CPU too.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import overnight, progress, save
from overnight import records
from overnight.data.manifest import Data
from tables import load, there

TEXTS = {".py", ".pyi", ".pyx", ".md", ".rst", ".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu", ".js"}
LONGEST = 1_000_000  # bytes; what is longer is mostly tables
TOKENS, BATCH, INTERVAL = 100_000_000, 131_072, 100
WARM_UP = 0.0375  # of all steps, as the lecture's 715 are of its 19,073
RUNS: dict[str, tuple[str, float, dict[str, float]]] = {  # preset, share of the tokens, options
    "GPT-2's recipe": ("gpt2-124m", 1.0, {}),
    "GPT-2's recipe, three times the rate": ("gpt2-124m", 1.0, {"lr": 1.8e-3, "min-lr": 1.8e-4}),
    "modern, half the tokens": ("modern-124m", 0.5, {}),
}
SMALL = "--model.n-layer 2 --model.n-head 2 --model.n-embd 64 --model.block-size 64 --device cpu".split()


def texts(folders: list[Path], most: int) -> Iterator[str]:
    """The texts of these folders, each once, in the order of their digests, up to so many bytes."""
    found: dict[bytes, Path] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.suffix in TEXTS and path.is_file() and 0 < path.stat().st_size <= LONGEST:
                found[hashlib.sha256(path.read_bytes()).digest()] = path
    for _, path in sorted(found.items()):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        most -= len(text.encode())
        if most < 0:
            return
        yield text


def prepare(data: Path, most: int) -> None:
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "include")}
    packed = data.with_suffix(".jsonl")
    packed.parent.mkdir(parents=True, exist_ok=True)
    with open(packed, "w", encoding="utf-8") as file:
        for text in texts(sorted({*folders, Path("/usr/include")}), most):
            file.write(json.dumps({"text": text}) + "\n")
    progress(overnight("prepare", f"text:{packed}", "--tokenizer", "gpt2", "--out", data).strip())


def train(name: str, data: Path, small: bool) -> dict[str, Any]:
    """One run in a process of its own; what its records say."""
    preset, share, changes = RUNS[name]
    batch = BATCH // 128 if small else BATCH
    steps = 20 if small else round(share * TOKENS / batch)
    options: dict[str, Any] = {f"optim.{option}": value for option, value in changes.items()}
    if preset == "gpt2-124m":
        options["optim.warmup-steps"] = round(WARM_UP * steps)
    run = data.parent / "".join(letter if letter.isalnum() else "-" for letter in name)
    options |= {
        "data": data, "run": run, "steps": steps, "batch-tokens": batch, "micro-batch": 4 if small else 64,
        "eval-every": INTERVAL, "val-tokens": 2**20, "save-every": 0, "sample-every": 0, "hellaswag-every": 0,
    }  # fmt: skip
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = [sys.executable, "-m", "overnight", "train", preset, *words, *(SMALL if small else [])]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return {"preset": preset, "options": changes, "steps": steps} | recorded(run)


def recorded(run: Path) -> dict[str, Any]:
    """What a run has come to, by its records, and where."""
    found, where = list(records.read(run)), json.loads((run / "environment.json").read_text())
    trained = [record for record in found if record["kind"] == "train"]
    milliseconds = [record["step_ms"] for record in trained]
    batch = trained[0]["tokens"]
    return {
        "tokens": trained[-1]["tokens"],
        "training_seconds": round(sum(milliseconds) / 1000, 1),
        "tokens_per_second": round(1000 * batch / statistics.median(milliseconds)),
        "validations": [[r["tokens"], round(r["loss"], 4)] for r in found if r["kind"] == "val"],
        "measured": {name: where[name] for name in ("time", "gpus", "torch", "git")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(RUNS))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    folder = options.data or Path("data/installed-small" if options.small else "data/installed") / "corpus"
    if not folder.is_dir():
        prepare(folder, 10_000_000 if options.small else 400_000_000)
    data = Data(folder)
    corpus = {
        "fingerprint": data.fingerprint,
        "tokens": {split: len(data.split(split)) for split in ("train", "val")},
    }
    runs = {}
    if options.only and there("crossing") and not options.small:
        before = load("crossing")["figures"]
        if before["corpus"] != corpus:
            raise SystemExit("benchmarks/results/crossing.json is of another corpus: leave out --only.")
        runs = before["runs"]
    for name in RUNS if options.only is None else options.only:
        runs[name] = train(name, folder, options.small)
        tokens, loss = runs[name]["validations"][-1]
        progress(f"{name}: {loss} after {tokens:,} tokens")
    if not options.small:
        save("crossing", {"corpus": corpus, "runs": runs}, quiet=True)


if __name__ == "__main__":
    main()
