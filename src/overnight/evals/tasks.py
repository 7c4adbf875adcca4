"""The tasks of `overnight eval`: input is read and checked first, for all of them; then they are run."""

import functools
import http.client
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.data.manifest import Data
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError, near
from overnight.evals import hellaswag, lambada, perplexity
from overnight.evals.loss import validation
from overnight.files import write_synced
from overnight.models.networks import Network
from overnight.world import World

TASKS = ("val", "hellaswag", "lambada", "perplexity")
DOWNLOADS = Path("data/downloads")
HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
HELLASWAG_ITEMS = 10_042  # of the validation set

# world, autocast, progress -> (name, value)
Task = Callable[
    [World, Callable[[], AbstractContextManager], Callable[[int, int], object]], Iterator[tuple[str, Any]]
]


@dataclass(frozen=True)
class Inputs:
    """What tasks read; empty where it was not given."""

    data: Data | None = None
    context: int = 0
    val_tokens: int = 0
    hellaswag_file: str = ""
    hellaswag_style: hellaswag.Style = "completion"
    lambada_file: str = ""
    text_file: str = ""
    items: int = 0


def names(listed: str) -> list[str]:
    """'val,hellaswag' -> the names, each once. Raises UserError for an unknown one."""
    found = list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if listed and not found:
        raise UserError(f"--tasks '{listed}' names none. The tasks are {', '.join(TASKS)}.")
    for name in found:
        if name not in TASKS:
            raise UserError(f"unknown task '{name}'.{near(name, TASKS)} The tasks are {', '.join(TASKS)}.")
    return found


def prepare(name: str, model: Network, tokenizer: Tokenizer | None, inputs: Inputs) -> Task:
    """A task with its input read. Raises UserError for what is missing or wrong."""
    if name == "val":
        assert inputs.data is not None
        lengths, size = inputs.data.tokenizer.byte_lengths, inputs.context or model.config.block_size
        return functools.partial(
            validation, model, inputs.data.split("val"), lengths, size, inputs.val_tokens or None
        )
    if tokenizer is None:
        raise UserError(f"{name} needs the model's tokenizer: give --tokenizer FILE.")
    if name == "hellaswag":
        path = Path(inputs.hellaswag_file) if inputs.hellaswag_file else download_hellaswag()
        questions = hellaswag.read(path, inputs.items)
        return functools.partial(hellaswag.hellaswag, model, tokenizer, questions, inputs.hellaswag_style)
    if name == "lambada":
        if not inputs.lambada_file:
            raise UserError("lambada reads a file: give --lambada-file PATH (jsonl, OpenAI's variant).")
        return functools.partial(
            lambada.lambada, model, tokenizer, lambada.read(Path(inputs.lambada_file), inputs.items)
        )
    if not inputs.text_file:
        raise UserError("perplexity reads a file: give --text-file PATH.")
    tokens = perplexity.read(Path(inputs.text_file), tokenizer)
    size = inputs.context or model.config.block_size
    return functools.partial(perplexity.perplexity, model, tokenizer, tokens, size)


def download_hellaswag(folder: Path = DOWNLOADS) -> Path:
    """HellaSwag's validation set, fetched once. No checksum of it is published: every line is checked, and
    their number."""
    target = folder / "hellaswag_val.jsonl"
    if target.is_file():
        return target
    try:
        with urllib.request.urlopen(HELLASWAG_URL, timeout=30) as response:
            content = response.read(100 << 20)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot download HellaSwag ({reason}).",
            f"With a copy of {HELLASWAG_URL}",
            "at hand, give it: --hellaswag-file PATH.",
        ) from None
    lines = content.splitlines()
    if len(lines) != HELLASWAG_ITEMS:
        raise UserError(f"{HELLASWAG_URL} sent {len(lines)} lines, not {HELLASWAG_ITEMS:,}: try again.")
    for number, line in enumerate(lines, 1):
        hellaswag.question(line, f"{HELLASWAG_URL}, line {number}")
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(target, content)
    return target
