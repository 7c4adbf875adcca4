"""The command line of a training run with two layers and 128 tokens per update."""

from pathlib import Path

SMALL = ["--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "16"]
SMALL += ["--batch-tokens", "128", "--optim.warmup-steps", "2", "--sample.length", "10"]


def options(data: Path, run: Path, *more: object) -> list[str]:
    return ["train", "shakespeare-cpu", "--data", str(data), "--run", str(run), *SMALL, *map(str, more)]
