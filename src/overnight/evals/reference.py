"""Is my loss normal? Published results, each with its recipe and source, and where a run stands among them.

Losses can be compared only on the same text: there is a verdict where the manifest proves the corpus and the
split, and none elsewhere. HellaSwag is the same everywhere, but its styles are not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from overnight.config import Config
from overnight.data.manifest import BY_FIRST_SHARD, Manifest

STEP = 524_288  # tokens of a step in these curves
SPARSE = 4.0  # points further apart than this factor say nothing about what lies between
NEAR = 1.05  # ... but about what is this close to one of them
HELLASWAG_ITEMS = 10_042


@dataclass(frozen=True)
class Curve:
    """Validation losses of a published run of GPT-2 (124M), or of the modern network of its size."""

    label: str
    corpus: str
    optim: dict[str, Any]
    """What of the optimizer's settings makes the recipe."""
    steps: int
    points: tuple[tuple[int, float], ...]
    """(step, loss in nats per token), steps of 524,288 tokens."""
    architecture: str = "gpt2"

    def fits(self, config: Config) -> bool:
        """Whether a run follows this recipe."""
        model, optim = config.model, config.optim
        n_head = {"gpt2": 12, "modern": 6}[self.architecture]
        return (
            model.architecture == self.architecture
            and (model.n_layer, model.n_head, model.n_embd, model.block_size) == (12, n_head, 768, 1024)
            and (config.batch_tokens, config.steps) == (STEP, self.steps)
            and all(getattr(optim, name) == value for name, value in self.optim.items())
        )

    def expected(self, step: float) -> tuple[float, float] | None:
        """The loss at a step and how far from it is still normal; None where the curve does not say.

        Between two points the loss is a line in log(step); before step 1,000 it falls fast, and runs differ.
        """
        for at, loss in self.points:
            if at / NEAR <= step <= at * NEAR:
                return loss, 0.1 if at >= 1000 else 0.3
        for (a, first), (b, last) in zip(self.points, self.points[1:], strict=False):
            if a <= step <= b and b / a <= SPARSE:
                share = math.log(step / a) / math.log(b / a)
                return first + share * (last - first), 0.1 if a >= 1000 else 0.3
        return None


CURVES = (
    Curve(
        "the lecture's recipe (build-nanogpt#30, corrected code; end: honest third-party runs)",
        "fineweb-edu",
        {"lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 715, "schedule": "cosine"},
        19_073,
        ((250, 6.1631), (1000, 4.1533), (1250, 3.9518), (19_073, 3.06)),
    ),
    Curve(
        "llm.c's 124M script (its log, 8 H100, 10.26 B tokens)",
        "fineweb",
        {"lr": 6e-4, "min_lr": 0.0, "warmup_steps": 700, "schedule": "cosine"},
        18_865,
        ((250, 6.1710), (1000, 4.3170), (2500, 3.7652), (5000, 3.5535), (10_000, 3.3924), (18_865, 3.2722)),
    ),
    Curve(
        "modded-nanogpt's track 3 (mean of 10 runs, 1.70 B tokens)",
        "fineweb",
        {"algorithm": "muon", "lr": 0.025, "min_lr": 0.0, "warmup_steps": 0, "schedule": "trapezoid"},
        3250,
        ((3250, 3.2787),),
        "modern",
    ),
)

# (whose, loss) on the first shard of a corpus.
LOSSES = {"fineweb-edu": (("OpenAI's GPT-2 124M (lecture notebook)", 3.2924),)}

# style -> (whose, acc_norm) on the whole validation set.
HELLASWAG = {
    "completion": (
        ("OpenAI's GPT-2 124M (lecture notebook)", 0.2945),
        ("GPT-3 124M (paper; its own way of asking)", 0.337),
        ("OpenAI's GPT-2 1558M", 0.4893),
    ),
    "lm-eval": (("OpenAI's GPT-2 124M", 0.3114), ("OpenAI's GPT-2 1558M", 0.5089)),
}


def corpus(manifest: Manifest) -> str | None:
    """The corpus whose first shard is this data's validation split; None where the manifest does not prove
    it: another source or split, other tokens, a shard of another size."""
    name, _, part = manifest.source.partition(":")
    known = name in ("fineweb", "fineweb-edu") and part == "sample-10BT"
    as_published = manifest.split == BY_FIRST_SHARD and manifest.tokens["val"] == 100_000_000
    return name if known and as_published and manifest.tokenizer["kind"] == "gpt2" else None


def unusual(manifest: Manifest, config: Config, step: int, loss: float) -> str | None:
    """A warning if a run's validation loss lies outside the band of its recipe's curve."""
    for curve in CURVES:
        if curve.corpus == corpus(manifest) and curve.fits(config) and (at := curve.expected(step)):
            usual, band = at
            if not abs(loss - usual) <= band:
                side = "above" if not loss < usual else "below"
                return f"NOT NORMAL: {side} {usual:.2f} +- {band:.1f}, {curve.label}."
    return None


@dataclass(frozen=True)
class Standing:
    """Where a result stands beside a published one."""

    better: bool
    theirs: float
    whose: str

    def __str__(self) -> str:
        return f"{'better' if self.better else 'not better'} than {self.theirs:.4f}, {self.whose}"


def standing(manifest: Manifest, loss: float) -> Iterator[Standing]:
    """Where a validation loss stands among published ones on the same tokens."""
    for whose, theirs in LOSSES.get(corpus(manifest) or "", ()):
        yield Standing(loss < theirs, theirs, whose)


def standing_hellaswag(style: str, acc_norm: float, items: float) -> Iterator[Standing]:
    """Where an acc_norm stands among published ones in the same style; nothing for a part of the items."""
    if items == HELLASWAG_ITEMS:
        for whose, theirs in HELLASWAG.get(style, ()):
            yield Standing(acc_norm > theirs, theirs, whose)
