"""inspect: true statistics, and a page that needs nothing from outside."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from overnight import inspection

Cli = Callable[..., Any]


class Page(HTMLParser):
    """What a page loads, and the text of its cells."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.cells: list[str] = []
        self.title = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "td":
            self.cells.append(data)
        if self._in == "title":
            self.title += data


def test_statistics_are_those_of_the_numbers() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    (row,) = inspection.statistics({"w": tensor})
    assert (row.name, row.shape, row.numbers, row.mean, row.least, row.most) == (
        "w",
        (2, 2),
        4,
        3.0,
        1.0,
        6.0,
    )
    assert row.deviation == pytest.approx((14 / 4) ** 0.5)


def test_a_run_is_shown_on_the_terminal_and_on_a_page(cli: Cli, run: Path) -> None:
    shown = cli("inspect", "x")
    assert (shown.code, shown.err) == (0, "")
    page = Page((run / "inspect.html").read_text(encoding="utf-8"))
    assert page.loads == []
    assert page.title == "runs/x at step 4"
    tensors = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    for name, tensor in tensors.items():
        assert name in page.cells
        (line,) = [line for line in shown.out.splitlines() if line.split()[:1] == [name]]
        assert float(line.split()[-1]) == pytest.approx(tensor.std(correction=0).item(), abs=1e-5)
        assert float(line.split()[-2]) == pytest.approx(tensor.mean().item(), abs=1e-5)
    assert (
        f"{sum(tensor.numel() for tensor in tensors.values()):,} numbers in {len(tensors)} tensors"
        in shown.out
    )


def test_names_are_escaped_and_what_is_not_finite_is_shown(tmp_path: Path) -> None:
    tensors = {"wpe.weight": torch.full((3, 2), float("nan")), "<script>alert(1)</script>": torch.zeros(1)}
    page = Page(inspection.page("<b>title</b>", tensors))
    assert page.title == "<b>title</b>"
    assert "<script>alert(1)</script>" in page.cells
    assert "nan" in page.cells


def test_the_page_of_gpt2s_positions_stays_small() -> None:
    page = inspection.page("gpt2", {"wpe.weight": torch.randn(1024, 768)})
    assert len(page) < 8_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "there is no run runs/nowhere"),
        ("x --out runs", "runs is a folder"),
        ("x --out runs/x/config.json/page.html", "is a file"),
        ("x --outt page.html", "unknown option --outt"),
    ],
)
def test_wrong_input_is_refused(cli: Cli, run: Path, arguments: str, message: str) -> None:
    refused = cli("inspect", *arguments.split())
    assert refused.code == 2
    assert message in refused.err
    assert not (run / "inspect.html").exists()
