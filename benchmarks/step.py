"""A training step at nanoGPT's CPU shapes, and the share of it that loading batches takes.

python benchmarks/step.py [--nanogpt DIR]     DIR: a checkout of nanoGPT, to run its step in turn
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from common import alternate, save, summary
from overnight.config import ModelConfig, OptimConfig
from overnight.data.batches import Batches
from overnight.data.loader import Loader
from overnight.data.shards import ShardWriter, Tokens, open_shard
from overnight.models.gpt2 import GPT
from overnight.optim import adamw
from overnight.step import train_step
from overnight.world import World

CPU = torch.device("cpu")
SHAPES = {
    "4 x 128, 12 x 64, vocabulary 65": (
        ModelConfig(4, 4, 128, 64, 65, bias=False, activation="gelu"),
        12,
        100,
    ),
    "6 x 384, 16 x 256, vocabulary 4096": (
        ModelConfig(6, 6, 384, 256, 4096, bias=False, activation="gelu"),
        16,
        7,
    ),
}


def tokens(folder: Path, vocabulary: int) -> Tokens:
    writer = ShardWriter(folder, f"v{vocabulary}", 1, 10**8, np.dtype("<u2"))
    writer.append(np.random.default_rng(1).integers(0, vocabulary, 1_000_000))
    return Tokens([open_shard(folder / entry["file"]) for entry in writer.close()])


def ours(config: ModelConfig, rows: int, data: Tokens) -> Callable[[], float]:
    model = GPT(config, config.vocab_size).init_weights(1)
    optim = OptimConfig(lr=1e-3, betas=(0.9, 0.99))
    optimizer = adamw(model, optim)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loader = Loader(Batches(data, config.block_size, lambda step: rows, seed=1), rows, World(CPU))
    step = iter(range(10**9))

    def run() -> float:
        batches = loader.at(next(step))
        return train_step(model, optimizer, scaler, batches, 1, 1e-3, 1.0, nullcontext)[0].item()

    return run


def loading(config: ModelConfig, rows: int, data: Tokens) -> Callable[[], None]:
    batches, step = Batches(data, config.block_size, lambda step: rows, seed=1), iter(range(10**9))

    def run() -> None:
        for _ in range(100):
            batches.at(next(step), 0, rows)

    return run


def nanogpt(config: ModelConfig, rows: int, data: Tokens) -> Callable[[], float]:
    from model import GPT as TheirGPT
    from model import GPTConfig

    sizes = {
        name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    }
    model = TheirGPT(GPTConfig(**sizes, bias=False, dropout=0.0))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    flat, T = data.read(0, len(data)).astype(np.uint16), config.block_size

    def run() -> float:
        starts = torch.randint(len(flat) - T, (rows,))
        x, y = (
            torch.stack([torch.from_numpy(flat[i + shift : i + shift + T].astype(np.int64)) for i in starts])
            for shift in (0, 1)
        )
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, rows, rounds) in SHAPES.items():
            data = tokens(Path(folder), config.vocab_size)
            work = {"overnight": ours(config, rows, data)}
            if options.nanogpt:
                sys.path.insert(0, str(options.nanogpt))
                work["nanogpt"] = nanogpt(config, rows, data)
            seconds = alternate(work, rounds, warm_up=2)
            load = alternate({"load": loading(config, rows, data)}, 5)["load"]
            figures[name] = {f"{who}_step_ms": summary(found) for who, found in seconds.items()}
            figures[name]["loading_ms"] = summary(load, scale=1000 / 100)
            share = figures[name]["loading_ms"]["median"] / figures[name]["overnight_step_ms"]["median"]
            figures[name]["loading_share_percent"] = round(100 * share, 3)
    save("step", figures)


if __name__ == "__main__":
    main()
