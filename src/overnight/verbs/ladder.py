"""`overnight ladder`: the lecture's speed ladder on this machine."""

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.arguments import parse
from overnight.checks import above_limits, at_least
from overnight.config import Auto, ModelConfig
from overnight.errors import DONE, Failure, UserError, near, refuse
from overnight.presets import PRESETS
from overnight.verbs import Device
from overnight.verbs.plan import GPT2_IDS, Plan, with_vocabulary

if TYPE_CHECKING:
    from overnight.ladder import Climbed, Place

SMALL = ModelConfig(n_layer=2, n_head=4, n_embd=128, block_size=128)  # a few seconds a rung on a CPU
LECTURE, SMALL_BATCH = 16, 4  # windows a step
SECONDS = {"cpu": 2.5, "mps": 8.0, "cuda": 8.0}  # of steps, a rung


@dataclass(frozen=True)
class Ladder:
    """The lecture's speed ladder, rung by rung, on this machine; then this project's own rungs."""

    out: str = "ladder.json"
    """Where the figures go; a chart beside the lecture's goes to the same name with .html."""
    device: Device = "auto"
    """Where to compute."""
    preset: str = ""
    """Whose model to train; default: gpt2-124m on a GPU, a small one on a CPU."""
    micro_batch: int | Auto = "auto"
    """Windows of a step; auto: 16, the lecture's, or fewer where they would not fit; 4 of the small model."""
    steps: int = 30
    """Steps of a rung, at most: slow ones get fewer, but five."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "", 1, "micro_batch", "steps")
        yield from above_limits(self)
        if self.preset and self.preset not in PRESETS:
            hint = near(self.preset, PRESETS)
            yield f"unknown preset '{self.preset}'.{hint} The presets are {', '.join(PRESETS)}."


def run(arguments: list[str]) -> int:
    wanted = parse(Ladder, "overnight ladder", arguments)
    out = Path(wanted.out)
    chart = out.with_suffix(".html")
    refuse(out_problems(out, chart))

    from overnight import ladder, ladder_page, world
    from overnight.environment import environment
    from overnight.files import clear_disk_errors, to_json, write_synced
    from overnight.terminal import Status, duration
    from overnight.visible import one_line

    device = world.choose_device(wanted.device)
    place = ladder.place_of(device)
    first = ladder.first_config(*shape(wanted, place), place)
    n_tokens = first.model.vocab_size
    assert isinstance(n_tokens, int)
    found: dict[str, Any] = {
        "device": device.type,
        "machine": environment(),
        "model": dataclasses.asdict(first.model),
        "micro_batch": first.micro_batch,
        "tokens_per_step": first.batch_tokens,
        "complete": False,
        "rungs": [],
    }
    status, began = Status(plain_every=0), time.monotonic()

    def measuring(line: str) -> None:
        done = len(found["rungs"])
        left = (time.monotonic() - began) / done * (len(ladder.RUNGS) - done) if done else 0.0
        status.update(lambda: line + (f", about {duration(left)} left" if done else ""))

    with clear_disk_errors(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_synced(out, to_json(found))  # now, if it cannot be written
        chart.unlink(missing_ok=True)
        status.say(ladder_page.setting(found))
        status.say(HEAD)
        steps = ladder.climb(first, n_tokens, place, wanted.steps, SECONDS[device.type], measuring)
        for climbed in steps:
            status.say(row(climbed, place))
            found["rungs"].append(climbed.described(place))
            found["complete"] = len(found["rungs"]) == len(ladder.RUNGS)
            write_synced(out, to_json(found))  # each time: what was measured is not lost
        if not any(rung["kept"] for rung in found["rungs"]):
            reason = found["rungs"][0]["reason"] or "the loss is not a number"
            raise Failure(f"nothing could be measured: {reason}")
        write_synced(chart, ladder_page.page(found))
    status.say(one_line(f"{out}: these figures. {chart}: a chart beside the lecture's."))
    return DONE


def out_problems(out: Path, chart: Path) -> Iterator[str]:
    """What keeps the figures from being written there; a file that is no ladder's is not overwritten."""
    from overnight.overwriting import overwrite_problem

    if out.suffix != ".json":
        yield f"--out {out} does not end in .json: the chart goes to the same name with .html."
        return
    for path, is_ours in ((out, lambda content: "rungs" in json.loads(content)), (chart, is_chart)):
        if problem := overwrite_problem(path, is_ours, "is not a ladder's"):
            yield problem
            return


def is_chart(content: bytes) -> bool:
    from overnight.ladder_page import is_page  # with plotly, so only where there is something to look at

    return is_page(content)


def shape(wanted: Ladder, place: "Place") -> tuple[ModelConfig, int]:
    """The model, with its vocabulary's size, and the windows of a step."""
    from overnight import plan
    from overnight.ladder import first_config
    from overnight.world import device_memory

    preset = wanted.preset or ("" if place.kind == "cpu" else "gpt2-124m")
    if preset:
        config = with_vocabulary(Plan(**vars(PRESETS[preset]())), None, padded=False)
        model, rows = config.model, LECTURE
    else:
        model, rows = dataclasses.replace(SMALL, vocab_size=GPT2_IDS), SMALL_BATCH
    if wanted.micro_batch != "auto":
        return model, wanted.micro_batch
    simplest = first_config(model, 1, place).model
    room = device_memory(place.device, 1)
    fits = plan.largest_micro_batch(simplest, rows, "fp32", place.kind, room)
    if fits is None:
        raise UserError("not even one window of this model fits here: give a smaller --preset.")
    return model, fits


HEAD = (
    f"{'':22} {'ms/step':>9} {'tokens/s':>10} {'MFU':>6} {'memory':>9} {'gain':>7} {'loss':>8} {'A100 ms':>8}"
)


def row(climbed: "Climbed", place: "Place") -> str:
    """A rung's line of the table."""
    from overnight.terminal import size

    lecture = f"{climbed.rung.lecture_ms:,.0f}" if climbed.rung.lecture_ms else "-"
    if climbed.found is None:
        return f"{climbed.name:22} {'-':>9}   {climbed.reason}"
    rate, mfu, memory = climbed.tokens_per_second, climbed.mfu(place), climbed.found.peak_memory
    return (
        f"{climbed.name:22} {climbed.found.ms:>9,.1f} {rate:>10,.0f} {f'{mfu:.1%}' if mfu else '-':>6} "
        f"{size(memory) if memory else '-':>9} {f'{climbed.gain:.2f}x' if climbed.gain else '-':>7} "
        f"{climbed.found.loss:>8.4f} {lecture:>8}" + ("" if climbed.kept else "  not kept")
    )
