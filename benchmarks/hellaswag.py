"""HellaSwag at GPT-2 124M's shapes, beside the lecture's way: four padded rows an item, every logit.

    python benchmarks/hellaswag.py hellaswag_val.jsonl [ITEMS]

Weights are random: the time does not depend on them. Both ways take the same items in lots of 50, in turn, in
fp32, in this process; their sums are compared as they go.
"""

import contextlib
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F

from common import save
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.evals.continuations import Item, score
from overnight.evals.hellaswag import read, to_item
from overnight.models.gpt2 import GPT
from overnight.world import connect

LOT = 50


@torch.no_grad()
def padded_rows(model: GPT, item: Item) -> list[float]:
    """The lecture's way with one item: the sum of each ending's log-likelihood."""
    endings = item.continuations
    longest = len(item.context) + max(map(len, endings))
    ids, mask = torch.zeros(len(endings), longest, dtype=torch.long), torch.zeros(len(endings), longest)
    for row, ending in enumerate(endings):
        end = len(item.context) + len(ending)
        ids[row, :end] = torch.tensor(item.context + ending)
        mask[row, len(item.context) : end] = 1
    logits = model.logits(model.hidden(ids))
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (-losses.view(len(endings), -1) * mask[:, 1:]).sum(1).tolist()


def main(file: str, items: str = "1000") -> None:
    tokenizer = tokens.gpt2()
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size), tokenizer.vocab_size).init_weights(1).eval()
    asked = [to_item(question, "completion", tokenizer) for question in read(Path(file), int(items))]
    seconds = {"overnight": 0.0, "lecture": 0.0}
    difference = 0.0
    with connect("cpu") as world:
        score(model, asked[:8], world, contextlib.nullcontext)  # to warm up
        for first in range(0, len(asked), LOT):
            lot = asked[first : first + LOT]
            began = perf_counter()
            ours = score(model, lot, world, contextlib.nullcontext)
            seconds["overnight"] += perf_counter() - began
            began = perf_counter()
            theirs = [padded_rows(model, item) for item in lot]
            seconds["lecture"] += perf_counter() - began
            pairs = [
                (one.log_likelihood, other)
                for scores, sums in zip(ours, theirs, strict=True)
                for one, other in zip(scores, sums, strict=True)
            ]
            difference = max(difference, *(abs(a - b) for a, b in pairs))
    figures = {f"{name}_items_per_second": round(len(asked) / time, 2) for name, time in seconds.items()}
    ratio = round(seconds["lecture"] / seconds["overnight"], 2)
    save(
        "hellaswag",
        {"items": len(asked), **figures, "ratio": ratio, "largest_difference_of_a_sum": difference},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
