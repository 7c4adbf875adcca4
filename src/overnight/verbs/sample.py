"""`overnight sample MODEL`."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from overnight.arguments import parse
from overnight.checks import above_limits, at_least, not_finite
from overnight.errors import DONE, UserError, refuse
from overnight.verbs import Device, Precision
from overnight.visible import visible


@dataclass(frozen=True)
class Sample:
    """Text from a prompt, streamed as it comes."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """Text to go on from (default: a new document); several times: several prompts, computed together."""
    interactive: Annotated[bool, arg(aliases=["-i"])] = False
    """Type prompts one after another; settings can be changed in between."""
    samples: int = 1
    """How many texts for each prompt."""
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
    tokenizer: str = ""
    """A tokenizer.json, for weights that come without one."""
    device: Device = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of matrix products."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        yield from not_finite(self)
        yield from above_limits(self)
        yield from at_least(self, "", 1, "samples", "length")
        yield from at_least(self, "", 0, "temperature", "top_k", "seed")
        if self.interactive and (self.prompt or self.samples > 1):
            yield "--interactive asks for prompts itself: leave --prompt and --samples out."
        if not 0 < self.top_p <= 1:
            yield f"top-p is {self.top_p}: give more than 0, at most 1."


def run(arguments: list[str]) -> int:
    wanted = parse(Sample, "overnight sample", arguments)

    from overnight import resolve, world
    from overnight.conversation import Settings, converse, lines
    from overnight.decode import Sampling
    from overnight.generate import stream

    with world.connect(wanted.device) as here:
        loaded = resolve.load(wanted.model, here.device, wanted.tokenizer)
        if loaded.tokenizer is None:
            raise UserError(f"{wanted.model} comes without its tokenizer: give --tokenizer FILE.")
        autocast = world.use_precision(resolve.precision(wanted.precision, loaded, here.device), here.device)
        sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p)
        if wanted.interactive:
            settings = Settings(sampling, wanted.length, wanted.seed)
            with autocast():
                converse(loaded.model, loaded.tokenizer, settings, lines("> "), say)
            return DONE
        with autocast():
            written = stream(
                loaded.model,
                loaded.tokenizer,
                [prompt for prompt in wanted.prompt or ("",) for _ in range(wanted.samples)],
                wanted.length,
                sampling,
                wanted.seed,
            )
            for text in written:
                say(text)
    return DONE


def say(text: str) -> None:
    """Show a piece of text at once: on a terminal visible, elsewhere as the model wrote it."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
