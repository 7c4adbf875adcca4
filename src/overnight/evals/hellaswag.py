"""HellaSwag (Zellers et al., 2019): which of four endings goes on from a context?

Two ways to ask, with different results, so that every figure names its own:

completion   the lecture's: the context as it is, " " + ending; the endings' mean loss a token decides
lm-eval      EleutherAI's: activity and context, cleaned of bracketed tags; the mean a character decides

`acc` goes by the sum over an ending, `acc_norm` by that mean.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals import jsonl
from overnight.evals.continuations import Item, encode_pair, score
from overnight.models.networks import Network
from overnight.visible import as_json
from overnight.world import World

Style = Literal["completion", "lm-eval"]
TEXTS = ("activity_label", "ctx_a", "ctx_b", "ctx")
ENDINGS = 4
# lm-eval's \[.*?\], and "[" with the rest of its line where nothing closes it: so no "[" in there is searched
# to the end of the line again, which took hours for a megabyte of them.
BRACKETED = re.compile(r"\[[^\]\n]*+\]?")


@dataclass(frozen=True)
class Question:
    """A line of the file."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: tuple[str, ...]
    label: int


def read(path: Path, limit: int = 0) -> list[Question]:
    """The first `limit` questions of a jsonl file, or all. Raises UserError with the line of a mistake."""
    return jsonl.read(path, "HellaSwag", question, limit)


def question(line: bytes, where: str) -> Question:
    try:
        item: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON.") from None
    if not isinstance(item, dict):
        raise UserError(f"{where} is not an object.")
    for name in TEXTS:
        if not isinstance(item.get(name), str):
            raise UserError(f'{where} has no string "{name}".')
    endings = item.get("endings")
    if not (
        isinstance(endings, list)
        and len(endings) == ENDINGS
        and all(isinstance(e, str) and e for e in endings)
    ):
        raise UserError(f'{where}: "endings" are not {ENDINGS} strings.')
    label = str(item.get("label"))
    if label not in {str(i) for i in range(ENDINGS)}:
        raise UserError(f'{where}: "label" is {as_json(item.get("label"))}, not 0 to {ENDINGS - 1}.')
    return Question(**{name: item[name] for name in TEXTS}, endings=tuple(endings), label=int(label))


def clean(text: str) -> str:
    """Without the marks that WikiHow's pages left in it, as lm-eval has it."""
    text = BRACKETED.sub(without_brackets, text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def without_brackets(found: re.Match[str]) -> str:
    """Nothing in place of a tag; what nothing closes stays."""
    return "" if found[0].endswith("]") else found[0]


def texts(question: Question, style: Style) -> tuple[str, list[str]]:
    """What a style makes of a question: the context, and the endings without the space before them."""
    if style == "completion":
        return question.ctx, list(question.endings)
    context = f"{question.activity_label}: {question.ctx_a} {question.ctx_b.capitalize()}"
    return clean(context), [clean(ending) for ending in question.endings]


def to_item(question: Question, style: Style, tokenizer: Tokenizer) -> Item:
    """Token ids of a question. The lecture encodes context and endings apart, lm-eval as one text."""
    context, endings = texts(question, style)
    if style == "completion":
        ids = tokenizer.encode(context).tolist() or [tokenizer.eot]
        return Item(ids, [tokenizer.encode(" " + ending).tolist() for ending in endings])
    pairs = [encode_pair(tokenizer, context, " " + ending) for ending in endings]
    return Item(pairs[0][0], [ids for _, ids in pairs])


def predictions(
    questions: Sequence[Question], items: Sequence[Item], sums: Sequence[Sequence[float]], style: Style
) -> tuple[np.ndarray, np.ndarray]:
    """The ending chosen by the sum, and by the style's mean: two (N,) arrays; -1, which is never right, where
    a likelihood is not a number."""
    by_sum = np.array(sums)  # (N, 4)
    if style == "completion":
        lengths = [[len(ids) for ids in item.continuations] for item in items]
    else:
        lengths = [[len(ending) for ending in texts(question, style)[1]] for question in questions]
    finite = np.isfinite(by_sum).all(1)
    with np.errstate(
        divide="ignore"
    ):  # an ending of nothing but marks has no characters: as in lm-eval, -inf
        by_mean = by_sum / np.array(lengths)
    return np.where(finite, by_sum.argmax(1), -1), np.where(finite, by_mean.argmax(1), -1)


def hellaswag(
    model: Network,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    style: Style,
    world: World,
    autocast: Callable[[], AbstractContextManager],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[str, Any]]:
    """Yields ("style", ...), ("acc", fraction), ("acc_norm", fraction) and ("items", number)."""
    items = [to_item(question, style, tokenizer) for question in questions]
    scores = score(model, items, world, autocast, progress)
    sums = [[one.log_likelihood for one in of_item] for of_item in scores]
    labels = np.array([question.label for question in questions])
    chosen, chosen_norm = predictions(questions, items, sums, style)
    yield "style", style
    yield "acc", float((chosen == labels).mean())
    yield "acc_norm", float((chosen_norm == labels).mean())
    yield "items", len(questions)
