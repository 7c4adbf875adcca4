"""HellaSwag: the predictions of a reference written from the definition, in both styles."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals import hellaswag
from overnight.evals.continuations import Item
from overnight.models.gpt2 import GPT
from overnight.world import connect

Cli = Callable[..., Any]


@torch.no_grad()
def padded_rows(
    model: GPT, context: list[int], endings: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lecture's way: four padded rows, every logit. Summed and mean loss of each ending."""
    longest = len(context) + max(map(len, endings))
    ids, mask = torch.zeros(4, longest, dtype=torch.long), torch.zeros(4, longest)
    for row, ending in enumerate(endings):
        ids[row, : len(context) + len(ending)] = torch.tensor(context + ending)
        mask[row, len(context) : len(context) + len(ending)] = 1
    logits = model.logits(model.hidden(ids)).float()
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    losses = losses.view(4, -1) * mask[:, 1:]
    return losses.sum(1), losses.sum(1) / mask[:, 1:].sum(1)


def reference(model: GPT, tokenizer: Tokenizer, line: dict[str, Any], style: str) -> tuple[int, int]:
    """The endings that one item's sum and mean choose, by the styles' definitions."""
    if style == "completion":
        context = tokenizer.encode(line["ctx"]).tolist()
        endings = [tokenizer.encode(" " + ending).tolist() for ending in line["endings"]]
        total, mean = padded_rows(model, context, endings)
        return int(total.argmin()), int(mean.argmin())

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    query = clean(f"{line['activity_label']}: {line['ctx_a']} {line['ctx_b'].capitalize()}")
    choices = [clean(ending) for ending in line["endings"]]
    n = len(tokenizer.encode(query.rstrip()))
    rows = [tokenizer.encode(f"{query} {choice}").tolist() for choice in choices]
    total, _ = padded_rows(model, rows[0][:n], [row[n:] for row in rows])
    by_character = total / torch.tensor([float(len(choice)) for choice in choices])
    return int(total.argmin()), int(by_character.argmin())


@pytest.mark.parametrize("style", ["completion", "lm-eval"])
def test_predictions_are_the_references(
    opinionated: GPT, tokenizer: Tokenizer, hellaswag_file: Path, style: hellaswag.Style
) -> None:
    lines = [json.loads(line) for line in hellaswag_file.read_text().splitlines()]
    expected = [reference(opinionated, tokenizer, line, style) for line in lines]
    questions = hellaswag.read(hellaswag_file)
    items = [hellaswag.to_item(question, style, tokenizer) for question in questions]
    with connect("cpu") as world:
        scores = hellaswag.score(opinionated, items, world, contextlib.nullcontext)
        found = dict(
            hellaswag.hellaswag(opinionated, tokenizer, questions, style, world, contextlib.nullcontext)
        )
    sums = [[one.log_likelihood for one in of_item] for of_item in scores]
    by_sum, by_mean = hellaswag.predictions(questions, items, sums, style)
    assert list(zip(by_sum.tolist(), by_mean.tolist(), strict=True)) == expected
    right = [
        sum(chosen[k] == int(line["label"]) for chosen, line in zip(expected, lines, strict=True))
        for k in (0, 1)
    ]
    assert found == {"style": style, "acc": right[0] / 60, "acc_norm": right[1] / 60, "items": 60}
    assert len({chosen for chosen, _ in expected}) == 4  # a model that always says the same proves nothing
    assert any(a != b for a, b in expected)


def test_likelihoods_that_are_no_numbers_choose_nothing() -> None:
    """A broken model must not look like one that guesses."""
    question = hellaswag.Question("a", "b", "c", "d", ("e", "ff", "g", "h"), 0)
    items = [Item([1], [[1], [1, 2], [1], [1]])] * 3
    sums = [[float("nan")] * 4, [-1.0, -5.0, float("-inf"), -2.0], [-3.0, -4.0, -9.0, -9.0]]
    by_sum, by_mean = hellaswag.predictions([question] * 3, items, sums, "completion")
    assert (by_sum.tolist(), by_mean.tolist()) == ([-1, -1, 0], [-1, -1, 1])


def test_the_styles_ask_differently() -> None:
    question = hellaswag.Question(
        "Cleaning [x] roofs", "A man [title] stands.", "the man", "A man [title] stands. the man",
        ("[step] goes  home", "b", "c", "d"), 0,
    )  # fmt: skip
    assert hellaswag.texts(question, "completion")[0] == "A man [title] stands. the man"
    context, endings = hellaswag.texts(question, "lm-eval")
    assert context == "Cleaning roofs: A man.  stands. The man".replace("  ", " ")
    assert endings[0] == " goes home"


GOOD = {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "ctx": "b", "endings": list("wxyz"), "label": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not an object"),
        (json.dumps(GOOD | {"ctx": None}), 'has no string "ctx"'),
        (json.dumps(GOOD | {"endings": ["a"] * 3}), '"endings" are not 4 strings'),
        (json.dumps(GOOD | {"endings": ["a", "b", "c", ""]}), '"endings" are not 4 strings'),
        (json.dumps(GOOD | {"endings": 4}), '"endings" are not 4 strings'),
        (json.dumps(GOOD | {"label": 4}), '"label" is 4, not 0 to 3'),
        (json.dumps(GOOD | {"label": ""}), '"label" is "", not 0 to 3'),
        (b"\xff\xfe".decode("latin-1"), "is not JSON"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=f"line 3.* {re.escape(message)}"):
        hellaswag.read(path)


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the HellaSwag file"):
        hellaswag.read(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="has no HellaSwag items"):
        hellaswag.read(tmp_path / "empty")


def test_labels_may_be_text_and_items_are_limited(hellaswag_file: Path) -> None:
    questions = hellaswag.read(hellaswag_file, 7)
    assert len(questions) == 7
    assert all(question.label in range(4) for question in questions)
