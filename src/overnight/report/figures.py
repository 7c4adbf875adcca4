"""The charts, as plotly.js takes them: {"data": [trace, ...], "layout": {...}}, plain data
(and a summary in words).

The report and the dashboard draw the same ones (charts.js). A trace has no x: `meta` holds its steps,
tokens and hours, and the page shows the one that the reader chose. Colours of ink and grid are the page's
(page.css), so that they follow light, dark and paper.
"""

import html
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from overnight.evals import reference
from overnight.report.facts import Run
from overnight.report.history import Columns, number
from overnight.report.thin import smooth, thin
from overnight.visible import one_line

Figure = dict[str, Any]
Trace = dict[str, Any]

# At least 3:1 against white and against the dark page, and far apart for all kinds of colour vision.
COLOURS = ("#2f7fc1", "#d1651f", "#1f9470", "#b0569a", "#8a7a12", "#6f74d8", "#c04a56", "#4f8f9e")
GREY = "#7d8590"
# Event -> its name in the strip below the loss, marker, colour; those that are not here are not drawn.
MARKS = {
    "checkpoint": ("saved", "line-ns-open", GREY),
    "resume": ("resume", "triangle-right", COLOURS[0]),
    "gone_back": ("went back", "triangle-left", COLOURS[3]),
    "nonfinite": ("not finite", "x", COLOURS[6]),
    "spike": ("spike", "triangle-up", COLOURS[1]),
}
MARKED = 1000  # events of a kind, more than a screen can show apart
FIRST = 0.05  # of a run: its steep beginning, which the loss's first view leaves out
TITLES = {
    "loss": "Loss, nats per token",
    "hellaswag": "HellaSwag, acc_norm",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
    "grad_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
}


def figures(compared: Sequence[Run]) -> dict[str, Figure]:
    """All charts for which there are numbers, in the order of TITLES."""
    made = {"loss": loss(compared), "hellaswag": hellaswag(compared)}
    for name in ("tokens_per_second", "mfu", "grad_norm", "lr"):
        made[name] = of_training(compared, name)
    shown = {name: made[name] for name in TITLES if made[name]["data"]}
    return {
        name: figure | {"summary": in_words(TITLES[name], figure["data"])} for name, figure in shown.items()
    }


def in_words(title: str, traces: list[Trace]) -> str:
    """A chart for those who do not see it: where each curve begins and ends."""
    told = []
    for trace in traces:
        known = [value for value in trace["y"] if isinstance(value, float)]
        if known and trace.get("hoverinfo") is None:
            told.append(f"{html.unescape(trace['name'])} from {known[0]:.4g} to {known[-1]:.4g}")
    return f"{title}: {'; '.join(told)}."


def places(columns: Columns, kept: np.ndarray) -> dict[str, list[float]]:
    """Where rows lie on each axis that the reader may choose."""
    steps, tokens = columns["step"][kept], columns["tokens"][kept]
    return {
        "steps": [int(step) for step in steps.tolist()],
        "tokens": [int(count) for count in tokens.tolist()],
        "hours": [round(hours, 5) for hours in columns["hours"][kept].tolist()],
    }


def rounded(values: np.ndarray) -> list[float | None]:
    """Six digits, more than a screen shows; None for what JSON cannot say."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def curve(columns: Columns, y: np.ndarray, name: str, colour: str, **style: Any) -> Trace:
    """A line through `y`, thinned."""
    kept = thin(y)
    line = {"color": colour, "width": style.pop("width", 1.8), "dash": style.pop("dash", "solid")}
    return {
        "type": "scatter",
        "mode": style.pop("mode", "lines"),
        "name": html.escape(name),
        "y": rounded(y[kept]),
        "meta": places(columns, kept),
        "line": line,
        "marker": {"color": colour, "size": 6},
        **style,
    }


def loss(compared: Sequence[Run]) -> Figure:
    """Training loss, smoothed, with every step behind it where there is one run; validation loss; published
    curves and levels of the same text; events in a strip below."""
    traces: list[Trace] = []
    for run, colour in zip(compared, colours(compared), strict=True):
        train, val, alone = run.history.train, run.history.val, len(compared) == 1
        own = "" if alone else f"{run.name}: "
        if len(train):
            if alone:
                every = curve(train, train["loss"], "train, every step", GREY, width=0.8, opacity=0.45)
                traces.append(every | {"hoverinfo": "skip"})
            trend = smooth(train["loss"])
            traces.append(
                curve(train, trend, f"{own}train", colour, **({} if alone else {"dash": "dot", "width": 1.2}))
            )
        if len(val):
            at_val, same = COLOURS[1] if alone else colour, val.most_alike("val_tokens")
            line = np.where(same, val["loss"], np.nan)
            traces.append(curve(val, line, f"{own}validation", at_val, mode="lines+markers"))
            if not same.all():  # on other tokens: at the end, all of them
                others = np.where(same, np.nan, val["loss"])
                mark = curve(val, others, f"{own}validation, all tokens", at_val, mode="markers")
                traces.append(mark | {"marker": {"color": at_val, "size": 9, "symbol": "diamond"}})
    known = {reference.corpus(run.data.manifest) for run in compared if run.data}
    corpora = sorted(corpus for corpus in known if corpus)
    traces += [published(one, compared) for one in reference.CURVES if one.corpus in corpora]
    levels = [level for corpus in corpora for level in reference.LOSSES.get(corpus, ())]
    top = first_view(compared)
    layout = base(levels, {"range": top} if top and traces else {})
    strip = list(marks(compared)) if traces else []
    if strip:
        traces += strip
        layout["yaxis"]["domain"] = [0.06 + 0.05 * len(rows_of(strip)), 1]
        layout["yaxis2"] = {
            "domain": [0, 0.05 * len(rows_of(strip))], "showgrid": False, "zeroline": False,
            "fixedrange": True, "categoryorder": "array", "categoryarray": rows_of(strip), "type": "category",
            "range": [-0.6, len(rows_of(strip)) - 0.4],
        }  # fmt: skip
        layout["xaxis"]["anchor"] = "y2"
    return {"data": traces, "layout": layout}


def first_view(compared: Sequence[Run]) -> list[float] | None:
    """The loss axis at first: from the lowest to the highest loss after the steep beginning, so that neither
    spikes nor the end's small differences are lost. A double click shows all."""
    seen: list[float] = []
    for run in compared:
        for columns in (run.history.train, run.history.val):
            late = columns["loss"][columns["step"] > FIRST * max(run.steps, run.history.step)]
            seen += late[np.isfinite(late)].tolist()
    if not seen:
        return None
    room = 0.04 * (max(seen) - min(seen)) or 0.1
    return [round(min(seen) - room, 4), round(max(seen) + room, 4)]


def published(one: reference.Curve, compared: Sequence[Run]) -> Trace:
    """A published run's validation losses. Its steps are those of its recipe's batch, so it is drawn over
    steps only where the runs have the same."""
    steps = [step for step, _ in one.points]
    meta = {"tokens": [step * reference.STEP for step in steps]}
    if all(run.config and run.config.batch_tokens == reference.STEP for run in compared):
        meta["steps"] = steps
    return {
        "type": "scatter", "mode": "lines+markers", "name": html.escape(one.label),
        "y": [loss for _, loss in one.points], "meta": meta,
        "line": {"color": GREY, "dash": "dash", "width": 1.5},
        "marker": {"color": GREY, "symbol": "diamond-open", "size": 7},
    }  # fmt: skip


def marks(compared: Sequence[Run]) -> Iterator[Trace]:
    """Events, a row for each kind; of several runs in the run's colour, checkpoints left out."""
    alone = len(compared) == 1
    for kind, (name, symbol, colour) in MARKS.items():
        for run, own in zip(compared, colours(compared), strict=True):
            events = run.history.events_named(kind)
            events = events[:: -(-len(events) // MARKED)] if events else events
            if not events or (kind == "checkpoint" and not alone):
                continue
            told = [html.escape(f"step {event['step']:,}: {name}{detail_of(event)}") for event in events]
            yield {
                "type": "scatter", "mode": "markers", "name": html.escape(name if alone else run.name),
                "y": [name] * len(events), "yaxis": "y2", "showlegend": False,
                "meta": {
                    "steps": [event["step"] for event in events],
                    "tokens": [event["tokens"] for event in events],
                    "hours": [round(event["hours"], 5) for event in events],
                },
                "text": told, "hoverinfo": "text",
                "marker": {
                    "symbol": symbol, "size": 9, "color": colour if alone else own, "line": {"width": 1},
                },
            }  # fmt: skip


def rows_of(strip: list[Trace]) -> list[str]:
    return list(dict.fromkeys(trace["y"][0] for trace in strip))


def detail_of(event: dict[str, Any]) -> str:
    """What an event says of itself that is worth a hover: numbers and short words."""
    numbers = ((name, number(value)) for name, value in islice(event["detail"].items(), 20))
    told = [f"{one_line(name[:50])} {value:.4g}" for name, value in numbers if not math.isnan(value)]
    return f" ({', '.join(told[:3])})" if told else ""


def hellaswag(compared: Sequence[Run]) -> Figure:
    """acc_norm beside published ones of the same style, where all items were asked."""
    traces, styles = [], set()
    for run, colour in zip(compared, colours(compared), strict=True):
        asked = run.history.hellaswag
        if len(asked):
            own = "acc_norm" if len(compared) == 1 else run.name
            traces.append(curve(asked, asked["acc_norm"], own, colour, mode="lines+markers"))
            styles |= {run.history.style} if asked["items"][-1] == reference.HELLASWAG_ITEMS else {""}
    only = styles.pop() if len(styles) == 1 else ""
    return {"data": traces, "layout": base(list(reference.HELLASWAG.get(only, ())), {})}


def of_training(compared: Sequence[Run], name: str) -> Figure:
    """A number of every step; for reading speeds and norms, the trend over the noise."""
    traces: list[Trace] = []
    for run, colour in zip(compared, colours(compared), strict=True):
        train = run.history.train
        y = train[name]
        if not np.isfinite(y).any():
            continue
        if name != "lr" and len(compared) == 1:
            traces.append(
                curve(train, y, "every step", GREY, width=0.8, opacity=0.45) | {"hoverinfo": "skip"}
            )
        traces.append(curve(train, y if name == "lr" else smooth(y), run.name, colour))
    axis: dict[str, Any] = {"type": "log"} if name == "grad_norm" else {"rangemode": "tozero"}
    if name == "mfu":
        axis["tickformat"] = ".0%"
    if name == "lr":
        axis["exponentformat"] = "e"
    return {"data": traces, "layout": base([], axis) | {"showlegend": len(compared) > 1}}


def colours(compared: Sequence[Run]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(compared))]


def base(levels: Sequence[tuple[str, float]], y: dict[str, Any]) -> dict[str, Any]:
    """The layout that all charts share; levels: horizontal lines with their names."""
    return {
        "xaxis": {"zeroline": False},
        "yaxis": {"zeroline": False, **y},
        "margin": {"l": 60, "r": 12, "t": 8, "b": 40},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
                "line": {"color": GREY, "width": 1, "dash": "dot"},
            }
            for _, value in levels
        ],
        "annotations": [
            {
                "xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom",
                "text": html.escape(f"{whose}: {value:.4g}"), "showarrow": False, "font": {"size": 11},
            }
            for whose, value in levels
        ],
    }  # fmt: skip
