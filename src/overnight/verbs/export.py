"""`overnight export MODEL --to hf|llmc --out PATH`."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.errors import DONE, UserError

if TYPE_CHECKING:
    from overnight.resolve import Loaded


@dataclass(frozen=True)
class Export:
    """Weights for other people's programs, in a new folder."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    to: Literal["hf", "llmc"]
    """hf: a folder for transformers; llmc: the files that llm.c's programs open."""
    out: str
    """The folder to make."""
    tokenizer: str = ""
    """A tokenizer.json, for weights that come without one."""


def run(arguments: list[str]) -> int:
    wanted = parse(Export, "overnight export", arguments)

    import torch

    from overnight import resolve
    from overnight.files import clear_disk_errors
    from overnight.private import use_private_folders
    from overnight.terminal import say
    from overnight.visible import one_line
    from overnight.weights import export

    out = Path(wanted.out)
    if wanted.to == "hf":
        use_private_folders()  # importing transformers creates one for torch.compile
        # It takes seconds, and can happen while the weights are read and written.
        importing = ThreadPoolExecutor(1).submit(export.import_transformers)
    loaded = resolve.load(wanted.model, torch.device("cpu"), wanted.tokenizer)
    if loaded.tokenizer is None:
        raise UserError(f"{wanted.model} comes without its tokenizer: give --tokenizer FILE.")
    if loaded.weights.config.architecture != "gpt2":
        theirs = "class of transformers" if wanted.to == "hf" else "program of llm.c"
        raise UserError(
            f"{loaded.origin} is no GPT-2: no {theirs} computes its norms, rotary positions, ReLU squared, "
            "skips and bounded logits, so the weights would be of no use there.",
            "Serve it to other programs instead: overnight serve (OpenAI's completions).",
        )
    with clear_disk_errors(f"exporting to {out}"):
        if wanted.to == "llmc":
            export.to_llmc(loaded.weights, loaded.tokenizer, out)
            files = f"{export.LLMC_MODEL} (fp32), {export.LLMC_BF16} and {export.LLMC_TOKENIZER}"
            say(f"{one_line(str(out))}: {files}.")
            return DONE
        card = export.model_card(loaded.origin, loaded.weights, facts(loaded))
        difference = export.to_hf(loaded.weights, loaded.tokenizer, out, card, importing.result)
    checked = (
        "not checked: transformers cannot be imported"
        if difference is None
        else f"transformers gives the same logits (largest difference {difference:.1g}) and greedy text"
    )
    say(f"{one_line(str(out))}: for AutoModelForCausalLM and AutoTokenizer; {checked}.")
    return DONE


def facts(loaded: "Loaded") -> dict[str, str]:
    """What a run measured up to the checkpoint, for the model card."""
    from overnight import records, saved
    from overnight.terminal import complain
    from overnight.visible import markdown_text

    if loaded.run is None or loaded.config is None or loaded.step is None:
        return {}
    state = saved.check(saved.folder(loaded.run, loaded.step), names=())
    if problem := records.problem(loaded.run, state.records_bytes, state.records_sha256):
        complain(f"The model card has no figures: the checkpoint vouches for other records ({problem}).")
        return {}
    newest: dict[str, dict] = {}
    for record in vouched(loaded.run / records.FILE, state.records_bytes):
        newest[record["kind"]] = record
    config, found = loaded.config, {"steps": f"{loaded.step:,}"}
    if "train" in newest:
        found["tokens trained on"] = f"{newest['train']['tokens']:,}"
    found |= {"data": markdown_text(Path(config.data).name), "tokens a step": f"{config.batch_tokens:,}"}
    if val := newest.get("val"):
        found["validation loss"] = f"{digits(val, 'loss', ' nats per token')} at step {val['step']:,}"
        found["bits per byte"] = digits(val, "bits_per_byte")
    if hellaswag := newest.get("hellaswag"):
        style = markdown_text(str(hellaswag.get("style", "unknown")))
        found["HellaSwag"] = f"acc_norm {digits(hellaswag, 'acc_norm')}, {style} style"
    return found


def vouched(path: Path, size: int) -> Iterator[dict]:
    """The records in the first `size` bytes of a file, those that a checkpoint vouches for, without damaged
    ones."""
    from overnight import records
    from overnight.files import open_regular

    if not size:
        return
    with open_regular(path) as file:
        while line := file.readline(min(size - file.tell(), records.LONGEST_LINE)):
            if record := records.parse(line):
                yield record


def digits(record: dict, name: str, unit: str = "") -> str:
    """A number of a record, which is null where it was not finite."""
    from overnight.report.history import number

    return "not finite" if math.isnan(value := number(record.get(name))) else f"{value:.4f}{unit}"
