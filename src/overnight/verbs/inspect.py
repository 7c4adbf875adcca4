"""`overnight inspect MODEL`."""

import re
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.errors import DONE, UserError


@dataclass(frozen=True)
class Inspect:
    """A look into a model: every tensor with its statistics, pictures of the position embeddings."""

    model: Positional[str]
    """runs/NAME (also NAME@STEP), hf:gpt2, hf:PATH, llmc:FILE or nanogpt:FILE."""
    out: str = ""
    """The HTML page to write (default: inspect.html in the run, else the model's name and -inspect.html)."""


def run(arguments: list[str]) -> int:
    wanted = parse(Inspect, "overnight inspect", arguments)

    import torch

    from overnight import inspection, resolve
    from overnight.files import clear_disk_errors, write_synced
    from overnight.overwriting import overwrite_problem
    from overnight.terminal import say
    from overnight.visible import one_line
    from overnight.weights.tensors import shapes

    loaded = resolve.load(wanted.model, torch.device("cpu"))
    name = re.sub(r"[^\w.-]+", "-", wanted.model).strip("-.")
    usual = loaded.run / "inspect.html" if loaded.run else Path(f"{name}-inspect.html")
    out = Path(wanted.out) if wanted.out else usual
    if problem := overwrite_problem(out, inspection.is_page, "is not a page of inspect's"):
        raise UserError(problem)
    tensors = {name: loaded.weights.tensors[name] for name in shapes(loaded.weights.config)}  # in its order
    rows = list(inspection.statistics(tensors))
    say(f"{one_line(loaded.origin)}: {sum(row.numbers for row in rows):,} numbers in {len(rows)} tensors")
    say(f"  {'name':28} {'shape':>14} {'mean':>10} {'deviation':>10}")
    for row in rows:
        say(f"  {row.name:28} {inspection.shape_of(row):>14} {row.mean:>10.5f} {row.deviation:>10.5f}")
    page = inspection.page(loaded.origin, tensors)
    with clear_disk_errors(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_synced(out, page)
    pictures = ", with pictures of the position embeddings" if "wpe.weight" in tensors else ""
    say(f"{one_line(str(out))}: the same{pictures}.")
    return DONE
