"""A run in one JSON object, which `report --json` prints and every table takes its numbers from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from overnight.records import finite
from overnight.report import again, facts
from overnight.report.crossing import crossings
from overnight.report.facts import Run, steadily
from overnight.report.verdict import verdict
from overnight.terminal import count, duration


@dataclass(frozen=True)
class Costs:
    """What the reader told: a run does not know what it costs."""

    price: float = 0.0
    """Of one card for an hour or, of a run without one, of the machine; 0: unknown."""
    watts: float = 0.0
    """Drawn by all machines of the run together; 0: unknown."""


def summary(run: Run, costs: Costs | None = None, now: datetime | None = None) -> dict[str, Any]:
    """Everything about a run but its curves. Losses in nats per token; what is unknown is None."""
    history, costs = run.history, costs or Costs()
    val, asked, data = history.val, history.hellaswag, run.data
    best = int(np.nanargmin(val["loss"])) if np.isfinite(val["loss"]).any() else None
    swag = {name: asked.last(name) for name in ("acc", "acc_norm")} if len(asked) else None
    paid = history.rank_hours if run.cards else history.hours
    found = {
        "name": run.name,
        "path": str(run.path),
        "state": run.state(now),
        "verdict": [asdict(sentence) for sentence in verdict(run, now)],
        "step": history.step,
        "steps": run.steps or None,
        "tokens": history.tokens,
        "loss": run.loss,
        "bits_per_byte": val.last("bits_per_byte"),
        "val_tokens": whole(val.last("val_tokens")),
        "best_loss": float(val["loss"][best]) if best is not None else None,
        "best_step": int(val["step"][best]) if best is not None else None,
        "train_loss": history.train.last("loss"),
        "hellaswag": swag and swag | {"items": whole(asked.last("items")), "style": history.style},
        "hours": history.hours,
        "seconds_left": run.seconds_left(),
        "tokens_per_second": steadily(history.train["tokens_per_second"]),
        "mfu": steadily(history.train["mfu"]),
        "energy_kwh": history.hours * costs.watts / 1000 if costs.watts else None,
        "cost": paid * costs.price if costs.price else None,
        "machine": run.machine,
        "preset": run.preset or None,
        "command": again.command(run),
        "parameters": run.parameters,
        "data": data and {
            "folder": str(data.folder), "source": data.manifest.source,
            "tokenizer": data.manifest.tokenizer["kind"], "vocabulary": data.tokenizer.vocab_size,
            "train_tokens": data.manifest.tokens["train"], "val_tokens": data.manifest.tokens["val"],
        },
        "environment": run.environment or None,
        "config": asdict(run.config) if run.config else None,
    }  # fmt: skip
    cleaned = finite(found)
    assert isinstance(cleaned, dict)
    return cleaned


def whole(number: float) -> int | None:
    return int(number) if np.isfinite(number) else None


def compared(all_of: Sequence[dict[str, Any]], runs: Sequence[Run]) -> dict[str, Any]:
    """Several summaries and what differs between their configs."""
    found = list(runs)
    differences = finite(facts.differences(found))
    return {
        "runs": list(all_of), "same_data": facts.same_data(found), "crossings": list(crossings(found)),
        "differences": differences,
    }  # fmt: skip


def numbers(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The most asked-for numbers of a summary, named, for reading."""
    swag, cost, energy = found["hellaswag"], found["cost"], found["energy_kwh"]
    told = [
        ("validation loss", digits(found["loss"])),
        ("bits per byte", digits(found["bits_per_byte"])),
        ("HellaSwag", digits(swag["acc_norm"]) if swag else ""),
        ("tokens", count(found["tokens"])),
        ("steps", f"{found['step']:,}" + (f" of {found['steps']:,}" if found["steps"] else "")),
        ("training", duration(3600 * found["hours"])),
        ("tokens/s", f"{found['tokens_per_second']:,.0f}" if found["tokens_per_second"] else ""),
        ("MFU", f"{found['mfu']:.1%}" if found["mfu"] else ""),
        ("energy", f"{energy:,.3g} kWh" if energy is not None else ""),
        ("cost", f"{cost:,.2f}" if cost is not None else ""),
    ]
    return [(name, value) for name, value in told if value]


def digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def particulars(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was trained on what, on which machine, for reading."""
    config, data, where = found["config"], found["data"], found["environment"] or {}
    told: list[tuple[str, str]] = []
    if config:
        model = config["model"]
        shape = (
            f"{model['architecture']}, {model['n_layer']} layers of {model['n_embd']}, "
            f"{model['n_head']} heads, context {model['block_size']:,}, "
            f"vocabulary {grouped(model['vocab_size'])}"
        )
        sized = f"{found['parameters'] / 1e6:,.1f} M parameters: " if found["parameters"] else ""
        told.append(("model", sized + shape))
        told.append(
            ("step", f"{config['batch_tokens']:,} tokens, {config['micro_batch']} windows at a time and rank")
        )
        told.append(("precision", f"{config['precision']}, torch.compile {config['compile']}"))
    if data:
        epochs = found["tokens"] / data["train_tokens"]
        told.append(
            (
                "data",
                f"{data['source']}: {count(data['train_tokens'])} tokens to train on ({epochs:.2f} epochs), "
                f"{count(data['val_tokens'])} to validate; {data['tokenizer']} tokenizer",
            )
        )
    told.append(("machine", found["machine"]))
    versions = [f"{name} {where[name]}" for name in ("overnight", "torch", "python") if where.get(name)]
    told.append(("software", ", ".join([*versions, str(where.get("platform") or "")]).strip(", ")))
    told.append(("commit", str(where.get("git") or "")))
    return [(name, value) for name, value in told if value]


def grouped(value: Any) -> str:
    """'50,304'; what is no number (an `auto` that nobody resolved) as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
