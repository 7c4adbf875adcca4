"""The options of the verbs other than `train`, whose options are the fields of config.Config."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from overnight.config import at_least, not_finite, seed_problems
from overnight.errors import refuse

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Prepare:
    """Documents -> tokens -> shards: a data folder that is whole or not there."""

    source: Positional[str]
    """stdlib, shakespeare or text:PATH."""
    out: str = ""
    """Folder to make (default: data/ and the source's name)."""
    tokenizer: str = ""
    """gpt2, char, bpe:N or a tokenizer.json (default: what suits the source)."""
    workers: int = 0
    """Processes that tokenise (default: one a CPU). The result does not depend on it."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard."""

    def __post_init__(self) -> None:
        refuse(at_least(self, "", 0, "workers"))


@dataclass(frozen=True)
class Eval:
    """Validation loss (nats per token) and bits per byte over the whole validation split."""

    model: Positional[str]
    """runs/NAME or any path of a run, with @STEP for another than its newest checkpoint."""
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


@dataclass(frozen=True)
class Sample:
    """Text from a prompt, streamed as it comes."""

    model: Positional[str]
    """runs/NAME or any path of a run, with @STEP for another than its newest checkpoint."""
    prompt: str = ""
    """Text to go on from (default: a new document)."""
    samples: int = 1
    """How many texts."""
    length: int = 200
    """New tokens each, at most; <|endoftext|> ends a text."""
    temperature: float = 1.0
    """Below 1 safer, above 1 wilder; 0: always the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability only; 1: from all."""
    seed: int = 1337
    """The same seed gives the same texts."""
    device: Device = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of matrix products."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        yield from not_finite(self)
        yield from at_least(self, "", 1, "samples", "length")
        yield from at_least(self, "", 0, "temperature", "top_k", "seed")
        yield from seed_problems(self.seed)
        if not 0 < self.top_p <= 1:
            yield f"top-p is {self.top_p}: give more than 0, at most 1."


@dataclass(frozen=True)
class Doctor:
    """What this machine can do, and what would go wrong; exit code 1 if something would."""

    device: Device = "auto"
    """The device to look at."""
