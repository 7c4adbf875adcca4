"""docs/recipes.md from recipes.template.md and the results of modern.py, recipes.py and crossing.py."""

import math
import statistics
from pathlib import Path

import gpu_page
from tables import load, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "recipes.md"

# What the speedrun's records (modded-nanogpt, track 3) say of the same at 124M.
POSITIONS = "part of 19,560 -> 9,536 steps: tuned rate, trapezoid, rotary"
ATTENTION = "part of 6,200 -> 5,100: normalised q and k, ReLU squared, projections at 0, 6 heads of 128"
HEAD = "part of 5,100 -> 4,578: untied head at 0, embedding's norm"
SKIP = "part of 4,578 -> 3,200: value residual, embedding's skip, bounded logits"
AT_124M = {
    "AdamW for the matrices": "3.3406 against Muon's 3.2760 after 5,100 steps; 5,625 steps against 3,250",
    "cosine, 5% warm-up": POSITIONS,
    "learnt positions, not rotary": POSITIONS,
    "queries and keys not normalised": ATTENTION,
    "GELU, not ReLU squared": ATTENTION,
    "output projections not 0 at first": ATTENTION,
    "no norm on the embedding": HEAD,
    "head not 0 at first": HEAD,
    "head tied to the embedding": HEAD,
    "logits not bounded": SKIP,
    "no skip from the embedding": SKIP,
}


def ablations() -> str:
    """A row a variant, by what it costs."""
    losses: dict[str, list[float]] = load("recipes")["figures"]["losses"]
    whole = statistics.mean(losses["the recipe"])
    rows: list[list[object]] = []
    for name, found in sorted(losses.items(), key=lambda one: -statistics.mean(one[1])):
        mean, deviation = statistics.mean(found), statistics.stdev(found)
        at_124m = next((text for key, text in AT_124M.items() if name.startswith(key)), "")
        shown = f"**{name}**" if name == "the recipe" else name
        rows.append([shown, f"{mean:.4f}", f"{deviation:.4f}", f"{mean - whole:+.4f}", at_124m])
    return table(["without, or with", "loss", "deviation", "worse by", "at 124M"], rows)


def chance() -> float:
    """Two standard errors of a difference of means."""
    figures = load("recipes")["figures"]
    variances = [statistics.variance(found) for found in figures["losses"].values()]
    return 2 * math.sqrt(2 * statistics.mean(variances) / figures["seeds"])


def times() -> str:
    """Both recipes on both tasks."""
    found = load("modern")["figures"]
    rows: list[list[object]] = []
    for preset in ("shakespeare-cpu", "modern-shakespeare-cpu", "gpt2-quickstart", "modern-quickstart"):
        one = found[preset]
        spread = f"{min(one['loss']):.3f} to {max(one['loss']):.3f}"
        rows.append(
            [
                f"`{preset}`", f"{one['median_loss']:.4f} ({spread})", f"{one['median_bits_per_byte']:.4f}",
                f"{one['median_training_seconds']:.1f} s", f"{one['median_seconds']:.1f} s",
                f"{one['median_step_ms']:.1f} ms",
            ]
        )  # fmt: skip
    return table(["preset", "loss", "bits per byte", "training", "start to end", "a step"], rows)


def page() -> str:
    recipe, modern = load("recipes")["figures"], load("modern")["figures"]
    ours, theirs = (modern[f"{name}-quickstart"]["median_bits_per_byte"] for name in ("modern", "gpt2"))
    told = gpu_page.words() | {
        "times": times(),
        "ablations": ablations(),
        "steps": f"{recipe['steps']:,}",
        "seeds": recipe["seeds"],
        "chance": f"{chance():.3f}",
        "fewer": f"{1 - ours / theirs:.1%}",
        "shakespeare_seconds": f"{modern['modern-shakespeare-cpu']['median_seconds']:.0f}",
    }
    text = (HERE / "recipes.template.md").read_text()
    for name, value in told.items():
        text = text.replace(f"{{{{{name}}}}}", str(value))
    return text
