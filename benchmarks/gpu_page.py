"""What was measured on a GPU, as tables: for docs/performance.md, docs/recipes.md and the README."""

from collections.abc import Iterator
from typing import Any

from tables import load, measured, table

AIMS = {  # on an H200
    "overnight": "560,000 tokens/s, MFU 48%",
    "modern": "450,000 tokens/s",
    "validation": "4%",
    "hellaswag": "10 s",
    "sampling, batch 1": "1,500 tokens/s",
    "sampling, batch 64": "60,000 tokens/s",
}
STEPS = {
    "overnight": "GPT-2 124M, half a million tokens a step",
    "modern": "the modern recipe at its size",
}


def rates(found: dict[str, Any]) -> str:
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] else ""
    return f"{found['tokens_per_second']:,} tokens/s{mfu}"


def rows() -> Iterator[list[object]]:
    """What, figure, what it was meant to be."""
    figures = load("gpu")["figures"]
    for name, found in figures.items():
        if isinstance(found, dict) and "step_ms" in found:
            what = f"{STEPS.get(name, name)}, {found['micro_batch']} x 1,024 at a time"
            yield [what, rates(found), AIMS.get(name, "")]
    if found := figures.get("validation"):
        of = f", {found['share']:.1%} of 250 steps with it" if found["share"] else ""
        yield [
            f"validation, {found['tokens']:,} tokens",
            f"{found['seconds']:.1f} s{of}",
            AIMS["validation"],
        ]
    if found := figures.get("hellaswag"):
        what = f"texts as long as HellaSwag's, {found['items']:,} items"
        yield [what, f"{found['seconds']:.1f} s", AIMS["hellaswag"]]
    for name, words in (("sampling, batch 1", "one text"), ("sampling, batch 64", "64 texts")):
        if found := figures.get(name):
            yield [
                f"sampling, GPT-2 124M, {words}",
                f"{found['tokens_per_second']:,} tokens/s",
                AIMS[name],
            ]


def gpu_table() -> str:
    return table(["what", "figure", "the aim"], list(rows()))


GPT2, MODERN = "GPT-2's recipe", "modern, half the tokens"  # of benchmarks/crossing.py


def runs() -> dict[str, Any]:
    return load("crossing")["figures"]["runs"]


def crossing_table() -> str:
    """Validation losses by tokens, a column a run."""
    losses = {name: dict(map(tuple, run["validations"])) for name, run in runs().items()}
    by_tokens: list[list[object]] = []
    for tokens in sorted(set().union(*losses.values())):
        cells = (f"{found[tokens]:.3f}" if tokens in found else "" for found in losses.values())
        by_tokens.append([f"{tokens / 1e6:.1f} M", *cells])
    return table(["tokens", *losses], by_tokens)


def crossed() -> tuple[float, float]:
    """The loss that GPT-2's recipe ends with, and the share of its tokens after which the modern one is first
    seen with it."""
    tokens, loss = runs()[GPT2]["validations"][-1]
    return loss, next(after for after, found in runs()[MODERN]["validations"] if found <= loss) / tokens


def crossing_row() -> list[object]:
    loss, share = crossed()
    what = f"the modern recipe at {loss:.2f}, the loss of GPT-2's after 100 M tokens of code"
    return [what, f"{share:.0%} of the tokens", "50%"]


def words() -> dict[str, str]:
    """What docs/recipes.md says of it."""
    tokens = load("crossing")["figures"]["corpus"]["tokens"]
    return {
        "train_tokens": f"{tokens['train'] / 1e6:.0f}",
        "val_tokens": f"{tokens['val'] / 1e6:.1f}",
        "crossing": f"{crossing_table()}\n\n{measured('crossing')}",
        "share": f"{crossed()[1]:.0%}",
        "modern_rate": f"{runs()[MODERN]['tokens_per_second']:,}",
        "gpt2_rate": f"{runs()[GPT2]['tokens_per_second']:,}",
    }
