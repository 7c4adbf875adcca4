"""`overnight eval MODEL`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.config import at_least
from overnight.errors import DONE, UserError, refuse
from overnight.verbs import Device, Precision


@dataclass(frozen=True)
class Eval:
    """Validation loss (nats per token) and bits per byte over the whole validation split."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    data: str = ""
    """Prepared data to evaluate on (default: what the run was trained on)."""
    tasks: Literal["val"] = "val"
    """What to measure."""
    context: int = 0
    """Tokens of a window (default: the model's block_size)."""
    val_tokens: int = 0
    """Only the first so many tokens of the split (default: all)."""
    json: bool = False
    """Print one JSON object: task -> {name: value}."""
    device: Device = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of matrix products."""

    def __post_init__(self) -> None:
        refuse(at_least(self, "", 0, "context", "val_tokens"))


def run(arguments: list[str]) -> int:
    wanted = parse(Eval, "overnight eval", arguments)

    from overnight import resolve, world
    from overnight.data.manifest import Data
    from overnight.evals.loss import validation
    from overnight.evals.yardstick import xz_bits_per_byte
    from overnight.terminal import Status

    with world.connect(wanted.device) as here:
        loaded = resolve.load(wanted.model, here.device)
        autocast = world.use_precision(resolve.precision(wanted.precision, loaded, here.device), here.device)
        trained = loaded.model.config.block_size
        if wanted.context > trained:
            raise UserError(
                f"--context {wanted.context} is longer than the model's {trained}: give at most that."
            )
        folder = wanted.data or (loaded.config.data if loaded.config else "")
        if not folder:
            raise UserError(f"{wanted.model} comes without data: give --data DIR.")
        data = Data(Path(folder))
        resolve.check_data(loaded, data)
        status = Status()

        def progress(done: int, total: int) -> None:
            status.update(lambda: f"validating, window {done:,} of {total:,}")

        found = dict(
            validation(
                loaded.model,
                data.split("val"),
                data.tokenizer.byte_lengths,
                wanted.context or trained,
                wanted.val_tokens or None,
                here,
                autocast,
                progress,
            )
        )
        status.clear()
    if not here.is_main:
        return DONE
    if wanted.json:
        numbers = {name: value if math.isfinite(value) else None for name, value in found.items()}
        print(json.dumps({wanted.tasks: numbers}))
        return DONE
    tokens = int(found["tokens"])
    rows = [
        ("validation loss", f"{found['loss']:.4f}", f"nats per token, {tokens:,} tokens"),
        ("bits per byte", f"{found['bits_per_byte']:.4f}", "fewer is better"),
    ]
    if (xz := xz_bits_per_byte(data, tokens)) is not None:
        rows.append(("xz -9e, bits per byte", f"{xz:.4f}", "the same text, compressed by itself"))
    print(f"{loaded.origin} on {data.folder}")
    print("\n".join(f"  {name:22} {value:>8}  {note}" for name, value, note in rows))
    return DONE
