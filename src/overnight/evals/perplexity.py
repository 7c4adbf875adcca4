"""Perplexity of any text: the validation loss of a file that is one document."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from overnight.data.documents import read_file
from overnight.data.shards import Tokens
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals.loss import validation
from overnight.models.networks import Network
from overnight.world import World


def read(path: Path, tokenizer: Tokenizer) -> Tokens:
    """The tokens of a text file, <|endoftext|> first."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    pieces = [tokenizer.encode(piece.text) for piece in read_file(path)]
    if not pieces:
        raise UserError(f"{path} is empty.")
    return Tokens([np.concatenate([np.array([tokenizer.eot], dtype=tokenizer.dtype), *pieces])])


def perplexity(
    model: Network,
    tokenizer: Tokenizer,
    tokens: Tokens,
    block_size: int,
    world: World,
    autocast: Callable[[], AbstractContextManager],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[str, float]]:
    """Yields ("loss", nats a token), ("perplexity", exp of it), ("bits_per_byte", ...), ("tokens", number).

    Windows are as in `validation`: every token is predicted once, with the context of its window.
    """
    lengths = tokenizer.byte_lengths
    found = dict(validation(model, tokens, lengths, block_size, None, world, autocast, progress))
    yield "loss", found["loss"]
    yield "perplexity", math.exp(found["loss"]) if found["loss"] < 700 else math.inf  # exp overflows beyond
    yield "bits_per_byte", found["bits_per_byte"]
    yield "tokens", found["tokens"]
