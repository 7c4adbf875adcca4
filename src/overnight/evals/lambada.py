"""LAMBADA (Paperno et al., 2016), OpenAI's variant: the last word of a passage, from what precedes it."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals import jsonl
from overnight.evals.continuations import Item, encode_pair, score
from overnight.models.networks import Network
from overnight.world import World


def read(path: Path, limit: int = 0) -> list[tuple[str, str]]:
    """The first `limit` passages of a jsonl file, or all, as (context, " word").

    A line has "context" and "continuation", or "text", whose last word is the continuation. Raises UserError
    with the line of a mistake.
    """
    return jsonl.read(path, "LAMBADA", passage, limit)


def passage(line: bytes, where: str) -> tuple[str, str]:
    try:
        item: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON.") from None
    parts = item if isinstance(item, dict) else {}
    context, word = parts.get("context"), parts.get("continuation")
    if context is None and word is None and isinstance(parts.get("text"), str):
        context, _, word = parts["text"].rpartition(" ")
    if not isinstance(context, str) or not isinstance(word, str) or not context.strip() or not word.strip():
        raise UserError(f'{where} has neither "context" and "continuation" nor a "text" of two words.')
    return context.rstrip(" "), word if word[0].isspace() else f" {word}"


def lambada(
    model: Network,
    tokenizer: Tokenizer,
    passages: Sequence[tuple[str, str]],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[str, float]]:
    """Yields ("acc", fraction of words whose every token is the likeliest), ("perplexity", of a word) and
    ("items", number)."""
    pairs = [encode_pair(tokenizer, context, word) for context, word in passages]
    scores = score(model, [Item(context, [word]) for context, word in pairs], world, autocast, progress)
    words = [of_item[0] for of_item in scores]
    yield "acc", sum(word.greedy for word in words) / len(words)
    mean = -sum(word.log_likelihood for word in words) / len(words)
    yield "perplexity", math.exp(mean) if mean < 700 else math.inf  # exp overflows beyond
    yield "items", len(words)
