"""The parts of a report as HTML, each from what a run's folder holds.

Every text that comes from data, samples, prompts, names or configs goes through `text`.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

from overnight.checks import fields_of
from overnight.report import again, facts
from overnight.report.crossing import crossings
from overnight.report.facts import Run
from overnight.report.summary import Costs, digits, numbers, particulars, summary
from overnight.terminal import count
from overnight.visible import html_text

MARKS = {"good": "✓", "plain": "·", "warning": "!", "bad": "✗"}  # colour alone tells nothing
LONGEST = 10_000  # characters of a text
MOST = 1_000  # rows of a table, samples
SAMPLED = 10  # steps whose samples are shown at once; the others are a click away

Section = tuple[str, str]
"""A heading and what stands below it, as HTML."""


def sections(compared: Sequence[Run], costs: Costs | None = None) -> dict[str, Section]:
    """The parts of the page, by their ids; empty ones have nothing to say (yet)."""
    found = [summary(run, costs) for run in compared]
    parts: dict[str, Section] = {"verdict": ("Verdict", verdicts(compared, found))}
    if len(compared) > 1:
        told = "".join(f"<p>{text(sentence)}</p>" for sentence in crossings(compared))
        parts["comparison"] = ("Side by side", told + comparison(found))
        parts["differences"] = ("What differs", differing(compared))
    parts["samples"] = ("Samples", named(compared, [samples(run) for run in compared]))
    parts["particulars"] = (
        "What was trained", named(compared, [table(particulars(one)) for one in found])
    )  # fmt: skip
    parts["events"] = ("Events", named(compared, [events(run) for run in compared]))
    parts["validations"] = ("Validations", named(compared, [validations(run) for run in compared]))
    parts["config"] = ("Config", named(compared, [config(run) for run in compared]))
    parts["again"] = ("Run it again", named(compared, [commands(run) for run in compared]))
    return parts


def named(compared: Sequence[Run], contents: list[str]) -> str:
    """What each run has, under its name where there are several."""
    if len(compared) == 1:
        return contents[0]
    return "".join(
        f"<h3>{text(run.name)}</h3>{content}"
        for run, content in zip(compared, contents, strict=True)
        if content
    )


def verdicts(compared: Sequence[Run], found: list[dict[str, Any]]) -> str:
    lists = [sentences(one["verdict"]) for one in found]
    if len(compared) == 1:
        shown = "".join(
            f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in numbers(found[0])
        )
        return f'{lists[0]}<dl class="numbers">{shown}</dl>'
    return named(compared, lists)


def sentences(said: list[dict[str, str]]) -> str:
    items = (
        f'<li class="{one["tone"]}"><span class="mark" aria-hidden="true">{MARKS[one["tone"]]}</span>'
        f"{text(one['text'])}</li>"
        for one in said
    )
    return f'<ul class="verdict">{"".join(items)}</ul>'


def comparison(found: list[dict[str, Any]]) -> str:
    """A row for each run, a column for each number that one of them has."""
    rows = [dict(numbers(one)) for one in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th class="number" scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{text(one["name"])}</th>'
        + "".join(f'<td class="number">{text(row.get(name, ""))}</td>' for name in names)
        + "</tr>"
        for one, row in zip(found, rows, strict=True)
    )
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def differing(compared: Sequence[Run]) -> str:
    """Fields of the configs that are not the same everywhere, and what that means for comparing losses."""
    rows = facts.differences(list(compared))
    note = "" if facts.same_data(list(compared)) else f'<p class="bad">{facts.DIFFERENT_DATA}</p>'
    if not rows:
        return note + "<p>Nothing in their configs.</p>"
    head = "".join(f'<th scope="col">{text(run.name)}</th>' for run in compared)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{text(value)}</td>" for value in row)}</tr>'
        for name, row in rows.items()
    )
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'{note}<div class="scroll">{table}</div>'


def table(rows: list[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows
    )
    return f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'


def samples(run: Run) -> str:
    """What the model wrote, prompt by prompt, from its first steps to its last."""
    prompts: dict[str, dict[int, list[str]]] = {}
    kept = run.history.samples
    for record in kept:
        prompts.setdefault(record["prompt"], {}).setdefault(record["step"], []).append(record["text"])
    parts, room = list[str](), MOST
    for prompt, written in prompts.items():
        steps = list(written)
        shown = spread(steps, SAMPLED)[: max(0, room)]
        told = f"Prompt: <code>{text(prompt)}</code>" if prompt.strip() else "A new document"
        parts += [f'<p class="soft">{told}</p>'] if shown else []
        parts += [sample(step, prompt, written[step][:1]) for step in shown]
        room -= len(shown)
        rest = ((step, one) for step, texts in written.items() for one in texts[step in shown :])
        hidden = [sample(step, prompt, [one]) for step, one in islice(rest, max(0, room))]
        room -= len(hidden)
        if hidden:
            parts.append(f"<details><summary>All others ({len(hidden)})</summary>{''.join(hidden)}</details>")
    left_out = kept.left_out + len(kept) - (MOST - room)
    return "".join(parts) + missing(left_out, "more samples")


def missing(left_out: int, what: str) -> str:
    """A line on what is not shown, so that nobody takes a page for all there is."""
    return f'<p class="soft">{left_out:,} {what} are left out here.</p>' if left_out > 0 else ""


def sample(step: int, prompt: str, texts: list[str]) -> str:
    body = "".join(f'<pre><span class="prompt">{text(prompt)}</span>{text(one)}</pre>' for one in texts)
    return f'<div class="sample"><h3>Step {step:,}</h3>{body}</div>'


def spread(steps: list[int], most: int) -> list[int]:
    """At most so many of `steps`: the first, the last, and between them each about as much later than the
    one before as that was itself, because models learn by doublings."""
    if len(steps) <= most:
        return steps
    wanted = [math.exp(i / (most - 1) * math.log(len(steps))) - 1 for i in range(most)]
    return [steps[i] for i in sorted({min(len(steps) - 1, round(at)) for at in wanted})]


def events(run: Run) -> str:
    """All that happened, but for checkpoints that were saved."""
    kept = run.history.events
    happened = [event for event in kept if event["name"] != "checkpoint"]
    rows = [
        f'<tr><td class="number">{event["step"]:,}</td><td>{text(event.get("time", ""))}</td>'
        f"<td>{text(event['name'])}</td><td>{text(again.detail(event['detail']))}</td></tr>"
        for event in happened[-MOST:]
    ]
    left_out = kept.left_out + len(happened) - len(rows)
    return details(rows, ("step", "time (UTC)", "event", "detail"), "events", left_out)


def validations(run: Run) -> str:
    """Every validation in numbers, for those who do not see the curves."""
    val = run.history.val
    columns = [
        val[name][-MOST:].tolist() for name in ("step", "tokens", "loss", "bits_per_byte", "val_tokens")
    ]
    rows = [
        f'<tr><td class="number">{step:,.0f}</td><td class="number">{count(tokens)}</td>'
        f'<td class="number">{digits(loss)}</td><td class="number">{digits(bits)}</td>'
        f'<td class="number">{predicted:,.0f}</td></tr>'
        for step, tokens, loss, bits, predicted in zip(*columns, strict=True)
    ]
    names = ("step", "tokens", "loss", "bits per byte", "of tokens")
    return details(rows, names, "validations", len(val) - len(rows))


def details(rows: list[str], names: tuple[str, ...], what: str, left_out: int) -> str:
    """A table that a click opens: the newest rows, and how many others there are."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    scroll = f'{missing(left_out, f"earlier {what}")}<div class="scroll">{body}</div>'
    return f"<details><summary>{len(rows):,} {what}</summary>{scroll}</details>"


def config(run: Run) -> str:
    """Every field; what is not the preset's in bold, and what auto chose."""
    if run.config is None:
        return ""
    auto, changed = run.auto, run.changed()

    def row(name: str, value: Any) -> str:
        note = "auto" if name in auto else f"preset: {changed[name][0]}" if name in changed else ""
        mark = ' class="changed"' if name in changed else ""
        return f'<tr><th scope="row">{text(name)}</th><td{mark}>{text(value)}</td><td>{text(note)}</td></tr>'

    body = "".join(row(name, value) for name, value in fields_of(run.config))
    named = f"<p>Preset <code>{text(run.preset)}</code>.</p>" if run.preset else ""
    return f"{named}<details><summary>All fields</summary><table><tbody>{body}</tbody></table></details>"


def commands(run: Run) -> str:
    """The commands that make such a run anew, whole: a part of one could be another command."""
    lines = again.lines(run)
    return f"<pre>{html_text(chr(10).join(lines))}</pre>" if lines else ""


def text(value: Any) -> str:
    """Anything as text in HTML, and only as text, cut where it is longer than anybody reads."""
    whole = str(value)
    left_out = len(whole) - LONGEST
    return html_text(f"{whole[:LONGEST]} ... ({left_out:,} characters left out)" if left_out > 0 else whole)
