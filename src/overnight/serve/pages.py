"""The pages of the server, and the fixed files that they load."""

from dataclasses import dataclass
from importlib.resources import files

import plotly as plotly_package

from overnight.report.page import asset, plotly, report, shell
from overnight.report.parts import Section

PLOTLY = f"/plotly-{plotly_package.__version__}.js"
HEAD = '<link rel="stylesheet" href="/page.css"><link rel="icon" href="data:,">'
TO_PROMPT = '<a class="skip" href="#prompt">To the prompt</a>'


@dataclass(frozen=True)
class Fixed:
    """A file that does not depend on the run."""

    kind: str
    content: bytes
    keep: bool = False
    """Whether a browser may keep it."""


def fixed() -> dict[str, Fixed]:
    """Path -> file. There are no others: nothing is looked up on the disk."""
    script, style = "text/javascript", "text/css"
    return {
        PLOTLY: Fixed(script, plotly().encode(), keep=True),
        "/page.css": Fixed(style, (asset("page.css") + own("serve.css")).encode()),
        "/charts.js": Fixed(script, asset("charts.js").encode()),
        "/dashboard.js": Fixed(script, own("dashboard.js").encode()),
        "/playground.js": Fixed(script, own("playground.js").encode()),
    }


def own(name: str) -> str:
    return (files("overnight.serve") / name).read_text("utf-8")


def scripts(*paths: str) -> str:
    """Fetched beside the page, run when it is there."""
    return "".join(f'<script defer src="{path}"></script>' for path in paths)


def dashboard(model: str, parts: dict[str, Section]) -> str:
    """The report of a run, kept up to date by dashboard.js; its charts come with the first event."""
    main = '<p id="connection" class="soft" role="status">Following the run.</p>' + report(parts, {})
    head = HEAD + scripts(PLOTLY, "/charts.js", "/dashboard.js")
    return shell(model, head, main, "", nav("Dashboard", followed=True))


def playground(model: str, followed: bool) -> str:
    """Prompts for the model, answered by the completions API."""
    return shell(
        model,
        HEAD + scripts("/playground.js"),
        own("playground.html"),
        "",
        nav("Playground", followed),
        TO_PROMPT,
    )


def nav(here: str, followed: bool) -> str:
    places = {"Dashboard": "/"} if followed else {}
    places["Playground"] = "/playground"
    links = (
        f'<a href="{path}"{" aria-current=page" if name == here else ""}>{name}</a>'
        for name, path in places.items()
    )
    return f'<nav aria-label="Pages">{"".join(links)}</nav>'
