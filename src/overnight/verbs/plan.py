"""`overnight plan PRESET`: what a run will cost, before anything is spent."""

import json as json_format
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from overnight import hardware, plan
from overnight import machine as this
from overnight.arguments import parse
from overnight.checks import at_least
from overnight.config import Config
from overnight.data.manifest import MANIFEST, Data
from overnight.errors import DONE, refuse
from overnight.presets import PRESETS
from overnight.terminal import duration, say, size
from overnight.verbs.train import find_preset, list_presets

# Ids of the tokenizers that `prepare` takes by itself, for data that is not there yet; else GPT-2's.
VOCABULARIES = {"data/stdlib": 2048, "data/shakespeare": 66}
GPT2_IDS = 50_257


@dataclass(frozen=True)
class Plan(Config):
    """Parameters, FLOPs, memory, time and cost of a run, before anything is spent."""

    gpu: str = ""
    """Only this card (H100, A100 80GB, RTX 4090 ...); default: all known ones, and this machine's CPU."""
    gpus: int = 1
    """How many of them."""
    mfu: float = 0.4
    """Model FLOPs utilisation to reckon with: the share of the peak that training reaches."""
    price: float = 0.0
    """Of one card for an hour, in your money; 0: no cost is shown."""
    json: bool = False
    """Print one JSON object."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from at_least(self, "", 1, "gpus")
        yield from at_least(self, "", 0, "price")
        if not 0 < self.mfu <= 1:
            yield f"mfu is {self.mfu}: give more than 0, at most 1."


def run(arguments: list[str]) -> int:
    preset, rest = find_preset(arguments, PRESETS, Plan, "plan")
    if preset is None:
        list_presets("plan")
        return DONE
    wanted = parse(Plan, f"overnight plan {preset}", rest, default=Plan(**vars(PRESETS[preset]())))
    data = Data(Path(wanted.data)) if (Path(wanted.data) / MANIFEST).is_file() else None
    cards = [hardware.named(wanted.gpu)] if wanted.gpu else list(hardware.GPUS)
    model = with_vocabulary(wanted, data, padded=True)
    places = [on_gpu(model, card) for card in cards]
    if not wanted.gpu and wanted.gpus == 1:
        places.append(on_this_cpu(with_vocabulary(wanted, data, padded=False)))
    if wanted.gpu and wanted.micro_batch != "auto":
        refuse(too_large(model, cards[0]))
    described = describe(preset, model, data) | {"places": places}
    if wanted.json:
        print(json_format.dumps(described))
    else:
        say(table(described, wanted))
    return DONE


def with_vocabulary(config: Plan, data: Data | None, padded: bool) -> Plan:
    """The config with its width, and its vocabulary's size: as given, or the data's, or that of the tokenizer
    to expect."""
    config = replace(config, model=config.model.sized())
    if config.model.vocab_size != "auto":
        return config
    ids = data.tokenizer.vocab_size if data else VOCABULARIES.get(config.data, GPT2_IDS)
    rows = hardware.padded(ids) if padded else ids
    return replace(config, model=replace(config.model, vocab_size=rows))


def describe(preset: str, config: Plan, data: Data | None) -> dict[str, Any]:
    """What does not depend on where the run takes place."""
    model, tokens = config.model, plan.run_tokens(config)
    per_token = plan.flops_per_token(model)
    in_epoch = data.manifest.tokens["train"] if data else None
    return {
        "preset": preset,
        "model": asdict(model),
        "parameters": plan.parameters_by_part(model) | {"total": plan.parameters(model)},
        "flops": {
            "convention": plan.CONVENTION,
            "per_token": per_token,
            "per_token_causal": plan.flops_per_token(model, causal=True),
            "run": per_token * tokens,
        },
        "tokens": {
            "steps": config.steps,
            "step": config.batch_tokens,
            "run": tokens,
            "data": in_epoch,
            "epochs": tokens / in_epoch if in_epoch else None,
        },
        "disk": {
            "checkpoint": plan.checkpoint_bytes(model, config.optim.algorithm),
            "run": plan.run_bytes(config),
        },
    }


def on_gpu(config: Plan, card: hardware.Gpu) -> dict[str, Any]:
    """A run on config.gpus of one card: does it fit, how long does it take, what does it cost."""
    precision = card.precision if config.precision == "auto" else config.precision
    found = fit(config, config.gpus, precision, "cuda", card.memory)
    peak = card.peak if precision in (card.precision, "fp16") else None
    rate = config.gpus * peak * config.mfu / plan.flops_per_token(config.model) if peak else None
    hours = plan.run_tokens(config) / rate / 3600 if rate and found["micro_batch"] else None
    return {
        "name": card.name,
        "count": config.gpus,
        "parallel": config.parallel,
        "shards_that_fit": None if found["micro_batch"] else shards_that_fit(config, precision, card.memory),
        **found,
        "mfu": config.mfu,
        "tokens_per_second": rate,
        "hours": hours,
        "cost": hours * config.gpus * config.price if hours and config.price else None,
    }


def on_this_cpu(config: Plan) -> dict[str, Any]:
    """What fits here. Time is not reckoned: a CPU's peak is not known."""
    precision = "fp32" if config.precision == "auto" else config.precision
    found = fit(config, config.processes, precision, "cpu", this.memory() or this.UNTOLD)
    return {"name": "this CPU", "count": 1, "parallel": config.parallel, "shards_that_fit": None, **found}


def shards_that_fit(config: Plan, precision: str, memory: int) -> int | None:
    """On how many cards, a power of two, --parallel fsdp has room for a model that one cannot hold."""
    for count in (2, 4, 8, 16, 32, 64):
        rows, left = divmod(config.batch_tokens, config.model.block_size * count)
        if not left and plan.largest_micro_batch(config.model, rows, precision, "cuda", memory, count):
            return count
    return None


def fit(config: Plan, ranks: int, precision: str, device: str, memory: int) -> dict[str, Any]:
    """The micro-batch as given, or the largest that fits, and the memory that it needs."""
    rows, left = divmod(config.batch_tokens, config.model.block_size * ranks)
    micro_batch = config.micro_batch
    shards = ranks if config.parallel == "fsdp" else 1
    if micro_batch == "auto":
        share = memory // (ranks if device == "cpu" else 1)
        fits = (
            None if left else plan.largest_micro_batch(config.model, rows, precision, device, share, shards)
        )
        micro_batch = fits or 0
    assert isinstance(micro_batch, int)
    needs = plan.memory(config.model, max(1, micro_batch), precision, device, shards)
    return {
        "precision": precision,
        "memory": memory,
        "micro_batch": micro_batch or None,
        "micro_steps": rows // micro_batch if micro_batch else None,
        "needs": needs | {"total": sum(needs.values())},
    }


def too_large(config: Plan, card: hardware.Gpu) -> list[str]:
    """What is wrong with a micro-batch that the named card has no room for."""
    found = on_gpu(config, card)
    if found["needs"]["total"] <= card.memory:
        return []
    best = on_gpu(replace(config, micro_batch="auto"), card)["micro_batch"]
    remedy = f"give --micro-batch {best}" if best else "not even one window fits"
    return [
        f"micro-batch {config.micro_batch} needs {size(found['needs']['total'])}, "
        f"more than the {size(card.memory)} of one {card.name}: {remedy}."
    ]


def table(described: dict[str, Any], config: Plan) -> str:
    """The plan for reading."""
    model, parts, tokens = described["model"], described["parameters"], described["tokens"]
    flops, disk, places = described["flops"], described["disk"], described["places"]
    there = (
        f"{tokens['epochs']:.2f} epochs of {config.data}"
        if tokens["data"]
        else f"nothing in {config.data} yet"
    )
    lines = [
        f"{described['preset']}: {parts['total'] / 1e6:,.1f} M parameters ({model['n_layer']} layers of "
        f"{model['n_embd']}, context {model['block_size']:,}, vocabulary {model['vocab_size']:,})"
    ]
    lines += [
        f"  {name:20} {count / 1e6:9.2f} M  {count / parts['total']:4.0%}"
        for name, count in parts.items()
        if name != "total"
    ]
    lines += [
        f"work    {flops['per_token'] / 1e6:,.1f} MFLOP a token ({plan.CONVENTION};",
        f"        {flops['per_token_causal'] / 1e6:,.1f} with attention counted causally), "
        f"{with_prefix(flops['run'])}FLOP in all",
        f"tokens  {tokens['steps']:,} steps of {tokens['step']:,}: {tokens['run'] / 1e6:,.1f} M; {there}",
        f"disk    {size(disk['checkpoint'])} a checkpoint, {size(disk['run'])} with --keep {config.keep}, "
        "the best, and one being written",
        "",
        f"{'':13} {'':4}  {'micro-batch':>11}  {'memory':>16}  {'tokens/s':>9}  {'time':>13}"
        + (f"  {'cost':>7}" if config.price else ""),
    ]
    for place in places:
        count = f"{place['count']} x " if place["count"] > 1 else ""
        fits = f"{place['micro_batch']} x {place['micro_steps']}" if place["micro_batch"] else "too large"
        if place["shards_that_fit"]:
            fits = f"fsdp on {place['shards_that_fit']}"
        of = f"{place['needs']['total'] / 1e9:.1f} of {size(place['memory'])}"
        rate, hours, cost = (place.get(key) for key in ("tokens_per_second", "hours", "cost"))
        lines.append(
            f"{count + place['name']:13} {place['precision']:4}  {fits:>11}  {of:>16}  "
            f"{f'{rate:,.0f}' if hours else '-':>9}  {duration(3600 * hours) if hours else '-':>13}"
            + (f"  {cost:>7,.0f}" if cost else "")
        )
    needs = [f"{name} {size(count)}" for name, count in places[0]["needs"].items() if name != "total"]
    lines += [
        "",
        f"Time at {config.mfu:.0%} MFU (--mfu). micro-batch A x B: A windows at once, B times a step.",
        *(
            ["fsdp on N: one card cannot hold it, N can share it: --gpus N --parallel fsdp."]
            if any(place["shards_that_fit"] for place in places)
            else []
        ),
        f"Memory, {places[0]['name']}: {', '.join(needs)}.",
    ]
    return "\n".join(lines)


def with_prefix(number: float) -> str:
    """8.55e18 -> '8.55 E'."""
    for unit, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= unit:
            return f"{number / unit:,.3g} {letter}"
    return f"{number:,.0f} "
