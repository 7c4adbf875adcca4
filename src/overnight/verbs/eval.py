"""`overnight eval MODEL`."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.checks import above_limits, at_least
from overnight.errors import DONE, UserError, refuse
from overnight.verbs import Device, Precision


@dataclass(frozen=True)
class Eval:
    """How good a model is: on its validation split, HellaSwag, LAMBADA, any text, or lm-eval's tasks."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    tasks: str = ""
    """What to measure, separated by commas: val, hellaswag, lambada, perplexity (default: val)."""
    data: str = ""
    """Prepared data for val (default: what the run was trained on)."""
    context: int = 0
    """Tokens of a window of val and perplexity (default: the model's block_size)."""
    val_tokens: int = 0
    """Only the first so many tokens of the validation split (default: all)."""
    hellaswag_file: str = ""
    """hellaswag_val.jsonl (default: downloaded once into data/downloads)."""
    hellaswag_style: Literal["completion", "lm-eval"] = "completion"
    """As the lecture asks it, or as EleutherAI's harness does; their scores differ."""
    lambada_file: str = ""
    """A jsonl with "context" and "continuation", or "text", on each line."""
    text_file: str = ""
    """The text that perplexity reads."""
    items: int = 0
    """Only the first so many items of hellaswag, lambada and lm-eval's tasks (default: all)."""
    harness: str = ""
    """Tasks of EleutherAI's lm-eval, separated by commas."""
    tokenizer: str = ""
    """A tokenizer.json, for weights that come without one."""
    json: bool = False
    """Print one JSON object: task -> {name: value}, and which model it was."""
    device: Device = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of matrix products."""

    def __post_init__(self) -> None:
        refuse([*at_least(self, "", 0, "context", "val_tokens", "items"), *above_limits(self)])


def run(arguments: list[str]) -> int:
    wanted = parse(Eval, "overnight eval", arguments)

    from overnight import resolve, world
    from overnight.data.manifest import Data
    from overnight.evals import tasks
    from overnight.terminal import Silent, Status, say
    from overnight.visible import one_line

    names = tasks.names(wanted.tasks or ("" if wanted.harness else "val"))
    found: dict[str, dict[str, Any]] = {}
    with world.connect(wanted.device) as here:
        loaded = resolve.load(wanted.model, here.device, wanted.tokenizer)
        autocast = world.use_precision(resolve.precision(wanted.precision, loaded, here.device), here.device)
        if wanted.context > (trained := loaded.model.config.block_size):
            raise UserError(
                f"--context {wanted.context} is longer than the model's {trained}: give at most that."
            )
        data = None
        if "val" in names:
            data = Data(Path(wanted.data)) if wanted.data else resolve.trained_on(loaded, wanted.model)
            resolve.check_data(loaded, data)
        inputs = tasks.Inputs(
            data, wanted.context, wanted.val_tokens, wanted.hellaswag_file, wanted.hellaswag_style,
            wanted.lambada_file, wanted.text_file, wanted.items,
        )  # fmt: skip
        ready = {name: tasks.prepare(name, loaded.model, loaded.tokenizer, inputs) for name in names}
        status = Status() if here.is_main else Silent()
        with ThreadPoolExecutor(1) as pool:  # hashing takes a processor for less time than evaluating
            checked = pool.submit(data.verify, "val") if data and here.is_main else None
            for name, task in ready.items():
                found[name] = dict(task(here, autocast, progress(status, name)))
                status.clear()
            if checked:
                checked.result()
        if wanted.harness:
            from overnight.evals.harness import harness

            if loaded.tokenizer is None:
                raise UserError("--harness needs the model's tokenizer: give --tokenizer FILE.")
            asked = [name.strip() for name in wanted.harness.split(",") if name.strip()]
            found["harness"] = harness(loaded.model, loaded.tokenizer, asked, wanted.items, here, autocast)
    if not here.is_main:
        return DONE
    if wanted.json:
        if loaded.run:
            found["model"] = {"name": loaded.name, "step": loaded.step, "damaged": list(loaded.damaged)}
        print(json.dumps({name: finite(values) for name, values in found.items()}))
    else:
        say(one_line(f"{loaded.origin}{f' on {data.folder}' if data else ''}"))
        say(table(found, data))
    return DONE


def progress(status: Any, name: str) -> Any:
    """A line that says how far a task is, and how long it will take."""
    from overnight.terminal import duration

    began = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - began) / max(done, 1) * (total - done)
        ahead = f", {duration(left)} left" if done else ""
        status.update(lambda: f"{name}: {done:,} of {total:,}{ahead}")

    return show


def finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(found: dict[str, dict[str, Any]], data: Any) -> str:
    """The results for reading."""
    from overnight.evals.reference import standing, standing_hellaswag
    from overnight.evals.yardstick import xz_bits_per_byte

    rows: list[tuple[str, float, str]] = []
    notes: list[str] = []
    if val := found.get("val"):
        rows.append(("validation loss", val["loss"], f"nats per token, {val['tokens']:,} tokens"))
        notes += [f"validation loss: {line}" for line in standing(data.manifest, val["loss"])]
        rows.append(("bits per byte", val["bits_per_byte"], "fewer is better"))
        if (xz := xz_bits_per_byte(data, val["tokens"])) is not None:
            rows.append(("xz -9e, bits per byte", xz, "the same text, compressed by itself"))
    if swag := found.get("hellaswag"):
        note = f"{swag['style']} style, {swag['items']:,} items; guessing: 0.25"
        rows += [("HellaSwag acc", swag["acc"], ""), ("HellaSwag acc_norm", swag["acc_norm"], note)]
        among = standing_hellaswag(swag["style"], swag["acc_norm"], swag["items"])
        notes += [f"HellaSwag acc_norm: {line}" for line in among]
    if last := found.get("lambada"):
        rows.append(("LAMBADA acc", last["acc"], f"last word right, {last['items']:,} items"))
        rows.append(("LAMBADA perplexity", last["perplexity"], "of a word"))
    if text := found.get("perplexity"):
        rows.append(("perplexity", text["perplexity"], f"of a token, {text['tokens']:,} tokens"))
        rows.append(("its loss", text["loss"], "nats per token"))
        rows.append(("its bits per byte", text["bits_per_byte"], "fewer is better"))
    for task, values in found.get("harness", {}).items():
        rows += [(f"{task} {name}", value, "lm-eval") for name, value in values.items()]
    lines = [f"  {name:22} {value:>8.4f}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])
