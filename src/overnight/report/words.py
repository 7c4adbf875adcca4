"""A report without a browser: on the terminal, with small curves, and as Markdown."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from overnight.report import again, facts
from overnight.report.crossing import crossings
from overnight.report.facts import Run
from overnight.report.figures import FIRST
from overnight.report.summary import Costs, numbers, particulars, summary
from overnight.report.thin import smooth
from overnight.report.verdict import verdict
from overnight.terminal import count
from overnight.visible import markdown_text, visible

STYLES = {"good": "green", "plain": "", "warning": "yellow", "bad": "red"}
HEIGHT, WIDEST = 8, 72  # of a chart, in characters
# The eight dots of a Braille character: rows from the top, columns from the left.
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def show(compared: Sequence[Run], console: Console, costs: Costs | None = None) -> None:
    """The verdict and the loss of each run; of several, their numbers side by side."""
    for run in compared:
        if len(compared) > 1:
            console.print(Text(visible(run.name), style="bold"))
        for sentence in verdict(run):
            console.print(Text(visible(sentence.text), style=STYLES[sentence.tone]))
        for line in loss_chart(run, min(WIDEST, console.width - 12), console.encoding.startswith("utf")):
            console.print(line, soft_wrap=True)
    if len(compared) > 1:
        if not facts.same_data(list(compared)):
            console.print(Text(facts.DIFFERENT_DATA, style="red"))
        for told in crossings(compared):
            console.print(Text(visible(told)))
        console.print(side_by_side(compared, costs))
    elif costs and (costs.price or costs.watts):
        console.print(
            Text(", ".join(f"{name} {value}" for name, value in numbers(summary(compared[0], costs))))
        )


def side_by_side(compared: Sequence[Run], costs: Costs | None) -> Table:
    each = [dict(numbers(summary(run, costs))) for run in compared]
    table = Table("", box=None)
    for run in compared:
        table.add_column(Text(visible(run.name)))
    for name in dict.fromkeys(name for one in each for name in one):
        table.add_row(Text(name, style="dim"), *(one.get(name, "") for one in each))
    return table


def loss_chart(run: Run, width: int, dots: bool = True) -> Iterator[Text]:
    """Training loss, smoothed, in Braille's dots or, without them, in plain ones; each validation is an o."""
    train, val = run.history.train, run.history.val
    begin = FIRST * max(run.steps, run.history.step)
    x, y = train["step"], smooth(train["loss"])
    late = (x > begin) & np.isfinite(y)
    if late.sum() < 2 or width < 20:
        return
    x, y = x[late], y[late]
    at, loss = val["step"], val["loss"]
    seen = (at >= x[0]) & np.isfinite(loss)
    at, loss = at[seen], loss[seen]
    low, high = min(y.min(), *loss.tolist(), y[-1]), max(y.max(), *loss.tolist(), y[0])
    scale = (high - low) or 1.0
    span = (x[-1] - x[0]) or 1.0
    if len(x) < 2 * width:  # a dot in every column
        x, y = (grid := np.linspace(x[0], x[-1], 2 * width)), np.interp(grid, x, y)
    across = ((x - x[0]) / span * (2 * width - 1)).astype(int)
    down = ((high - y) / scale * (4 * HEIGHT - 1)).astype(int)
    cells = np.zeros((HEIGHT, width), dtype=int)
    for column, height in joined(across, down):
        cells[height // 4, column // 2] |= DOTS[height % 4, column % 2]
    drawn = [
        [(chr(0x2800 + cell) if dots else ".") if cell else " " for cell in row] for row in cells.tolist()
    ]
    for step, value in zip(at.tolist(), loss.tolist(), strict=True):
        column = min(width - 1, round((step - x[0]) / span * (width - 1)))
        drawn[round((high - value) / scale * (HEIGHT - 1))][column] = "o"
    for number, row in enumerate(drawn):
        label = f"{high - number / (HEIGHT - 1) * scale:8.4f} " if number in (0, HEIGHT - 1) else " " * 9
        line = Text(label, style="dim")
        for letter in row:
            line.append(letter, style="dark_orange" if letter == "o" else "blue")
        yield line
    ends = f"step {x[0]:,.0f}", f"{x[-1]:,.0f}"
    yield Text(
        f"{'loss':>8} {ends[0]}{'o validation':^{max(14, width - sum(map(len, ends)))}}{ends[1]}", style="dim"
    )


def joined(across: np.ndarray, down: np.ndarray) -> Iterator[tuple[int, int]]:
    """Every dot between the rows that a column has to reach, so that a curve has no gaps."""
    last = int(down[0])
    for column in range(int(across[-1]) + 1):
        here = down[across == column]
        if len(here):
            top, bottom = min(last, int(here.min())), max(last, int(here.max()))
            last = int(here[-1])
            yield from ((column, row) for row in range(top, bottom + 1))


def markdown(compared: Sequence[Run], costs: Costs | None = None) -> str:
    """The verdict, the numbers and what was trained, for an issue, a lab notebook or a pull request."""
    found = [summary(run, costs) for run in compared]
    lines: list[str] = []
    for run, one in zip(compared, found, strict=True):
        lines += [f"## {markdown_text(run.name)}", ""]
        lines += [f"- {markdown_text(sentence['text'])}" for sentence in one["verdict"]]
        lines += ["", *rows(("", ""), particulars(one)), ""]
        lines += [*validations(run), ""]
        if command := again.command(run):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
            lines += [fence, command, fence, ""]
    if len(compared) > 1:
        each = [dict(numbers(one)) for one in found]
        names = list(dict.fromkeys(name for row in each for name in row))
        told = [
            (run.name, *(row.get(name, "") for name in names))
            for run, row in zip(compared, each, strict=True)
        ]
        lines += ["## Side by side", ""]
        lines += [] if facts.same_data(list(compared)) else [facts.DIFFERENT_DATA, ""]
        lines += [line for told in crossings(compared) for line in (markdown_text(told), "")]
        lines += [*rows(("run", *names), told), ""]
        differs = facts.differences(list(compared))
        told = [(name, *map(str, row)) for name, row in differs.items()]
        lines += ["## What differs", "", *rows(("field", *(run.name for run in compared)), told), ""]
    return "\n".join(lines)


def validations(run: Run) -> list[str]:
    """The last ten."""
    val = run.history.val
    told = [
        (f"{step:,.0f}", count(tokens), f"{loss:.4f}", f"{bits:.4f}")
        for step, tokens, loss, bits in zip(
            *(val[name].tolist()[-10:] for name in ("step", "tokens", "loss", "bits_per_byte")), strict=True
        )
    ]
    return rows(("step", "tokens", "validation loss", "bits per byte"), told) if told else []


def rows(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    """A table."""
    lines = [[markdown_text(str(cell)) for cell in line] for line in (head, *body)]
    lines.insert(1, ["---"] * len(head))
    return [f"| {' | '.join(line)} |" for line in lines]
