"""`overnight report RUN...`: the morning after."""

import json as json_format
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.checks import at_least, not_finite
from overnight.errors import DONE, UserError, refuse

if TYPE_CHECKING:
    from overnight.report.facts import Run
    from overnight.report.summary import Costs

FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """The verdict on a run, its curves and samples, as one HTML file; several runs are laid over one another.
    Runs in progress and broken ones are reported as far as they go."""

    runs: Positional[tuple[str, ...]]
    """runs/NAME or any path of a run."""
    out: str = ""
    """The file to write (default: report.html in the run; of several runs, in this folder)."""
    price: float = 0.0
    """Of one card for an hour, in your money (of the machine, for runs on a CPU); 0: no cost is shown."""
    watts: float = 0.0
    """Drawn by all of a run's machines together; 0: no energy is shown."""
    json: bool = False
    """Print one JSON object instead."""
    markdown: bool = False
    """Print Markdown instead."""
    terminal: bool = False
    """Show the verdict and the loss here instead."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        yield from not_finite(self)
        yield from at_least(self, "", 0, "price", "watts")
        if not self.runs:
            yield "RUN is missing: give one run or more, runs/NAME or a path."
        instead = [name for name in ("json", "markdown", "terminal") if getattr(self, name)]
        if len(instead) > 1:
            yield f"--{' and --'.join(instead)}: give one of them."
        if instead and self.out:
            yield f"--out is for the HTML file, --{instead[0]} prints: give one of them."


def run(arguments: list[str]) -> int:
    wanted = parse(Report, "overnight report", arguments)

    from overnight.report import facts
    from overnight.report.summary import Costs

    costs = Costs(wanted.price, wanted.watts)
    runs = list({run.path.resolve(): run for run in map(facts.open_run, wanted.runs)}.values())
    facts.label(runs)
    if wanted.json:
        from overnight.report.summary import compared, summary

        print(json_format.dumps(compared([summary(one, costs) for one in runs], runs)))
    elif wanted.markdown:
        from overnight.report.words import markdown

        sys.stdout.write(markdown(runs, costs))
    elif wanted.terminal:
        terminal(runs, costs)
    else:
        write(runs, costs, wanted.out)
    return DONE


def terminal(runs: "list[Run]", costs: "Costs | None" = None) -> None:
    """Show runs on the terminal."""
    from rich.console import Console

    from overnight.report.words import show

    show(runs, Console(highlight=False), costs)


def write(runs: "list[Run]", costs: "Costs", out: str) -> None:
    """Write the page, and say what it says first and what it warns of."""
    from overnight.files import clear_disk_errors, write_synced
    from overnight.overwriting import overwrite_problem
    from overnight.report.page import is_report, page
    from overnight.report.verdict import verdict
    from overnight.terminal import say
    from overnight.visible import one_line

    path = Path(out) if out else (runs[0].path / FILE if len(runs) == 1 else Path(FILE))
    if problem := overwrite_problem(path, is_report, "is not a report"):
        raise UserError(problem)
    content = page(runs, costs)
    with clear_disk_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, content)
    for one in runs:
        first, *rest = verdict(one)
        for sentence in (first, *(more for more in rest if more.tone in ("warning", "bad"))):
            say(f"{one.name}: {sentence.text}" if len(runs) > 1 else sentence.text)
    say(f"{one_line(str(path))}: verdict, curves and samples; open it in a browser.")
