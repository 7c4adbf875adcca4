"""The ladder as a page: this machine's steps beside the lecture's. Takes what `ladder.json` holds."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from overnight.visible import html_text

TITLE = "Speed ladder"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
.chart {{ background: #fff; color: #000 }}
</style></head><body>
<h1>{title}</h1>
<p>{setting}</p>
<div class="chart">{chart}</div>
<p>Grey rungs were no faster here and are left out of those that follow.{missing}</p>
</body></html>
"""


def page(climbed: dict[str, Any]) -> str:
    """The page, with nothing outside of it: plotly's JavaScript is inside."""
    missing = [f"{rung['name']} ({rung['reason']})" for rung in climbed["rungs"] if rung["reason"]]
    return PAGE.format(
        title=TITLE,
        setting=html_text(setting(climbed)),
        chart=chart(climbed["rungs"]).to_html(full_html=False, include_plotlyjs=True, default_height="36rem"),
        missing=html_text(f" Not measured: {'; '.join(missing)}." if missing else ""),
    )


def is_page(content: bytes) -> bool:
    """Whether a file that begins so is such a page, which the next may replace."""
    return f"<title>{TITLE}</title>".encode() in content[:1000]


def setting(climbed: dict[str, Any]) -> str:
    """What was trained where, in a line."""
    model, where = climbed["model"], climbed["machine"]
    name = where["gpus"][0] if climbed["device"] == "cuda" else f"{where['cpu']}, {where['threads']} threads"
    return (
        f"{climbed['micro_batch']} x {model['block_size']:,} tokens a step, {model['n_layer']} layers of "
        f"{model['n_embd']}, vocabulary {model['vocab_size']:,}; {climbed['device']}: {name}; "
        f"torch {where['torch']}"
    )


def chart(rungs: list[dict[str, Any]]) -> go.Figure:
    """Milliseconds of a step, rung by rung from the top: here, and in the lecture."""
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=("here, ms a step", "the lecture, ms a step (A100, GPT-2 124M, 16 x 1,024)"),
    )  # fmt: skip
    measured = [rung for rung in rungs if rung["ms"]]
    told = [rung for rung in rungs if rung["lecture_ms"]]
    columns = (
        (measured, "ms", ["#2a6fb0" if rung["kept"] else "#b8b8b8" for rung in measured]),
        (told, "lecture_ms", "#7a9a52"),
    )
    for column, (shown, key, colour) in enumerate(columns, 1):
        bars = go.Bar(
            x=[rung[key] for rung in shown], y=[rung["name"] for rung in shown], orientation="h",
            text=[f"{rung[key]:,.4g}" for rung in shown], textposition="auto", marker_color=colour,
        )  # fmt: skip
        figure.add_trace(bars, row=1, col=column)
    figure.update_yaxes(
        categoryorder="array", categoryarray=[rung["name"] for rung in reversed(rungs)], automargin=True
    )
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(showlegend=False, margin={"t": 40, "r": 20})
    return figure
