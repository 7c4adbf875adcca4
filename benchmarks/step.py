"""A training step on a CPU beside transformers, torch's own modules and nanoGPT; what loading takes of it.

    python benchmarks/step.py [--nanogpt DIR] [--only TEXT]     DIR: a checkout of nanoGPT

Each runs in a process of its own, in turn, so that a machine whose speed drifts is fair to all; fp32.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import peers
from common import alternate, in_turn, save, summary
from overnight.config import ModelConfig
from overnight.data.batches import Batches
from overnight.data.loader import Loader
from overnight.data.shards import ShardWriter, Tokens, open_shard
from overnight.world import World

# Setting, rounds, steps a round: nanoGPT's CPU command, its Shakespeare model, GPT-2.
SHAPES = {
    "4 x 128, 12 x 64, vocabulary 65": (
        peers.Setting(ModelConfig(4, 4, 128, 64, 65, bias=False, activation="gelu"), 12), 10, 20,
    ),
    "6 x 384, 16 x 256, vocabulary 4096": (
        peers.Setting(ModelConfig(6, 6, 384, 256, 4096, bias=False, activation="gelu"), 16), 4, 1,
    ),
    "GPT-2 124M, 4 x 1024": (peers.Setting(ModelConfig(vocab_size=50_257), 4), 1, 1),
}  # fmt: skip
RATE = 600_000  # tokens/s at which loading must not be noticed


def loading(rows: int = 64, T: int = 1024) -> dict[str, float]:
    """Milliseconds that a micro-batch of GPT-2 takes to read from shards of 100 M tokens, and what share of a
    step at RATE that would be if nothing else went on meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "train", 1, 10**8, np.dtype("<u2"))
        draw = np.random.default_rng(1)
        for _ in range(20):
            writer.append(draw.integers(0, 50_257, 10**7))
        shards = Tokens([open_shard(Path(folder) / entry["file"]) for entry in writer.close()])
        loader = Loader(Batches(shards, T, lambda step: rows, seed=1), rows, World(torch.device("cpu")))
        steps = iter(range(10**9))
        seconds = alternate({"read": lambda: loader._read(next(steps), 0)}, 200)["read"]
        loader.close()
    found = summary(seconds)
    return {**found, "share_percent": round(found["median"] / (1000 * rows * T / RATE) * 100, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--only", default="", help="shapes that have this in their names")
    options = parser.parse_args()
    figures: dict[str, object] = {"loading, 64 x 1024": loading()}
    for name, (setting, rounds, each) in SHAPES.items():
        if options.only not in name:
            continue
        make = {"overnight": partial(peers.overnight, setting)}
        make["transformers"] = partial(peers.transformers, setting)
        if setting.model.n_embd < 384:  # the larger ones take minutes
            make["torch_modules"] = partial(peers.torch_modules, setting)
        if options.nanogpt:
            make["nanogpt"] = partial(peers.nanogpt, options.nanogpt.resolve(), setting)
        seconds = in_turn(make, rounds, each, warm_up=1 if each == 1 else each)
        ours = summary(seconds["overnight"])
        figures[name] = {f"{who}_step_ms": summary(found) for who, found in seconds.items()} | {
            f"times_as_fast_as_{who}": round(summary(found)["median"] / ours["median"], 3)
            for who, found in seconds.items()
            if who != "overnight"
        }
    if options.only:
        print(json.dumps(figures, indent=2))  # half a result is none to keep
    else:
        save("step", figures)


if __name__ == "__main__":
    main()
