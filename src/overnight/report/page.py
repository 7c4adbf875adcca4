"""The report as one HTML file, with nothing outside of it; the dashboard is made of the same parts.

What may run is named by its SHA-256 in the page's own content policy, so that nothing else in it ever does.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from overnight.report.facts import Run
from overnight.report.figures import TITLES, Figure, figures
from overnight.report.parts import Section, sections, text
from overnight.report.summary import Costs

GENERATOR = "overnight report"  # by which `is_report` knows a file of ours
SKIP = '<a class="skip" href="#charts">To the curves</a>'
AXES = {"steps": "steps", "tokens": "tokens", "hours": "time"}


def is_report(content: bytes) -> bool:
    """Whether a file that begins so is a report, which the next may replace."""
    return f'content="{GENERATOR}"'.encode() in content[:1000]


def page(compared: Sequence[Run], costs: Costs | None = None) -> str:
    """The report of one run, or of several laid over one another."""
    drawn = figures(compared)
    data = json.dumps(drawn, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    scripts = [plotly(), asset("charts.js"), asset("start.js")]
    style = asset("page.css")
    policy = f"default-src 'none'; img-src data:; style-src {STYLES}; script-src "
    policy += " ".join(f"'sha256-{digest(script)}'" for script in scripts)
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    tail = f'<script type="application/json" id="figures">{data}</script>\n'
    tail += "\n".join(f"<script>{script}</script>" for script in scripts)
    return shell(title(compared), head, report(sections(compared, costs), drawn), tail)


# plotly.js styles its elements as it makes them. Styles show, and do not act.
STYLES = "'unsafe-inline'"


def shell(named: str, head: str, main: str, tail: str, nav: str = "", skip: str = SKIP) -> str:
    """A page around its content. skip: where the first press of Tab leads."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR}">\n<title>{text(named)}</title>\n{head}</head><body>\n'
        f"{skip}\n<header><h1>{text(named)}</h1>{nav}</header>\n<main>\n{main}\n</main>\n{tail}\n"
        "</body></html>\n"
    )


def report(parts: dict[str, Section], drawn: dict[str, Figure]) -> str:
    """The parts of a report, its charts behind the first."""
    first, *others = [section(name, *part) for name, part in parts.items()]
    return "\n".join([first, charts(drawn), *others])


def section(name: str, heading: str, content: str) -> str:
    hidden = "" if content else " hidden"
    return (
        f'<section id="{name}" aria-labelledby="{name}-heading"{hidden}>'
        f'<h2 id="{name}-heading">{text(heading)}</h2><div class="content">{content}</div></section>'
    )


def charts(drawn: dict[str, Figure]) -> str:
    """Where charts.js draws; a chart without figures waits, hidden, for the dashboard."""
    radios = "".join(
        f'<label><input type="radio" name="axis" value="{name}"{" checked" if name == "steps" else ""}> '
        f"{shown}</label>"
        for name, shown in AXES.items()
    )
    places = "\n".join(
        f"<figure{'' if name in drawn else ' hidden'}><h3>{heading}</h3>"
        f'<div class="chart" data-chart="{name}" role="img" '
        f'aria-label="{text(drawn[name]["summary"]) if name in drawn else ""}"></div></figure>'
        for name, heading in TITLES.items()
    )
    return (
        '<section id="charts" aria-labelledby="charts-heading"><h2 id="charts-heading">Curves</h2>'
        f'<fieldset class="controls"><legend class="soft">over</legend>{radios}</fieldset>'
        f'<div class="charts">{places}</div><noscript>The curves need JavaScript; the tables below do not.'
        "</noscript></section>"
    )


def title(compared: Sequence[Run]) -> str:
    return ", ".join(run.name for run in compared)


@cache
def plotly() -> str:
    """plotly.js, from plotly's own wheel."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


@cache
def asset(name: str) -> str:
    return (files("overnight.report") / name).read_text("utf-8")


@cache
def digest(script: str) -> str:
    """As a content policy names what may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
