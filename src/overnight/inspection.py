"""A look into a model: every tensor with its statistics, what it learnt of positions; one HTML page."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from overnight.visible import html_text

CURVES = 4  # columns of the position embeddings drawn as curves

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }}
th, td {{ padding: .15rem .8rem .15rem 0; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
.chart {{ background: #fff; color: #000 }}
</style></head><body>
<h1>{title}</h1>
<p>{total} numbers in {count} tensors.</p>
{positions}
<h2>Tensors</h2>
<table><thead><tr><th>name</th><th>shape</th><th>numbers</th><th>mean</th><th>deviation</th><th>least</th>
<th>most</th></tr></thead><tbody>
{rows}
</tbody></table>
</body></html>
"""

POSITIONS = """<h2>Position embeddings</h2>
<p>wpe.weight: a row for each position, a column for each of the model's channels. What begins as noise
becomes smooth, often wave-like, curves, because neighbouring positions mean nearly the same.</p>
<div class="chart">{heat_map}</div>
<div class="chart">{curves}</div>"""


@dataclass(frozen=True)
class Row:
    """Statistics of a tensor; of those that hold what is not finite they are not finite either."""

    name: str
    shape: tuple[int, ...]
    numbers: int
    mean: float
    deviation: float
    least: float
    most: float


def statistics(tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """A row for each tensor. deviation: of all its numbers from their mean, the root of the mean square."""
    for name, tensor in tensors.items():
        x = tensor.detach().double()
        least, most = torch.aminmax(x)
        deviation = x.std(correction=0).item()
        yield Row(name, tuple(x.shape), x.numel(), x.mean().item(), deviation, least.item(), most.item())


def shape_of(row: Row) -> str:
    return " x ".join(f"{size:,}" for size in row.shape)


def page(title: str, tensors: Mapping[str, Tensor]) -> str:
    """The page, with nothing outside of it: plotly's JavaScript is inside."""
    rows = list(statistics(tensors))
    cells = [
        [row.name, shape_of(row), f"{row.numbers:,}"]
        + [f"{value:.5f}" for value in (row.mean, row.deviation, row.least, row.most)]
        for row in rows
    ]
    lines = ["<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in line) + "</tr>" for line in cells]
    return PAGE.format(
        title=html_text(title),
        total=f"{sum(row.numbers for row in rows):,}",
        count=len(rows),
        positions=pictures(tensors["wpe.weight"]) if "wpe.weight" in tensors else "",
        rows="\n".join(lines),
    )


def is_page(content: bytes) -> bool:
    """Whether a file that begins so is such a page, which the next may replace."""
    return content.startswith(PAGE[:15].encode()) and b" tensors.</p>" in content[:10_000]


def pictures(positions: Tensor) -> str:
    """(T, C) -> the part of the page about them. (Rotary positions have nothing learnt to show.)"""
    table = positions.detach().float().numpy()
    return POSITIONS.format(heat_map=heat_map(table), curves=curves(table))


def heat_map(positions: np.ndarray) -> str:
    """(T, C) -> a chart. Values go as 16-bit integers, half the size of floats; the eye sees fewer levels."""
    finite = np.nan_to_num(positions, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(np.abs(finite).max()) or 1.0
    unit = 10.0 ** math.ceil(math.log10(largest / 32_767))
    ticks = [largest * part for part in (-1, -0.5, 0, 0.5, 1)]
    figure = go.Figure(
        go.Heatmap(
            z=np.round(finite / unit).astype(np.int16),
            colorscale="RdBu",
            zmid=0,
            colorbar={
                "tickvals": [tick / unit for tick in ticks],
                "ticktext": [f"{tick:.2g}" for tick in ticks],
            },
            hovertemplate=f"position %{{y}}, channel %{{x}}: %{{z}} x {unit:.0e}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis_title="channel", yaxis_title="position", yaxis_autorange="reversed", margin={"t": 20}
    )
    return figure.to_html(full_html=False, include_plotlyjs=True, default_height="32rem")


def curves(positions: np.ndarray) -> str:
    """(T, C) -> a chart of a few columns."""
    channels = sorted({round(share * (positions.shape[1] - 1)) for share in np.linspace(0.2, 0.8, CURVES)})
    figure = go.Figure([go.Scatter(y=positions[:, c], name=f"channel {c}", mode="lines") for c in channels])
    figure.update_layout(xaxis_title="position", yaxis_title="value", margin={"t": 20})
    return figure.to_html(full_html=False, include_plotlyjs=False, default_height="24rem")
