"""The report without a browser: terminal and Markdown."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.made import full_night, lecture, make_run

from overnight.report import facts
from overnight.report.summary import Costs
from overnight.report.words import markdown, show


@pytest.fixture
def two(tmp_path: Path) -> list[facts.Run]:
    found = []
    for name, lr in (("a", 6e-4), ("b\x1b[31m|", 3e-4)):
        run = tmp_path / name
        night = full_night(400, every=100)
        config = lecture(run, steps=400)
        make_run(run, config, night)
        text = (run / "config.json").read_text()
        (run / "config.json").write_text(text.replace('"lr": 0.0006', f'"lr": {lr}'))
        found.append(facts.open_run(str(run)))
    facts.label(found)
    return found


def shown(runs: list[facts.Run], width: int = 100, costs: Costs | None = None) -> str:
    screen = io.StringIO()
    show(runs, Console(file=screen, width=width, force_terminal=False), costs)
    return screen.getvalue()


def test_the_terminal_shows_verdict_and_curve(two: list[facts.Run]) -> None:
    lines = shown(two[:1]).splitlines()
    assert lines[0].startswith("Validation loss ")
    chart = [line for line in lines if any("⠀" < letter <= "⣿" for letter in line)]
    assert 6 <= len(chart) <= 8
    assert sum(line.count("o") for line in chart) == 4  # validations
    assert "step 21" in lines[-1]
    assert "400" in lines[-1]


def test_no_line_is_wider_than_the_terminal(two: list[facts.Run]) -> None:
    for width in (30, 60, 100):
        assert max(map(len, shown(two, width).splitlines())) <= width


def test_several_runs_stand_side_by_side(two: list[facts.Run]) -> None:
    text = shown(two)
    assert "validation loss" in text
    assert "\x1b" not in text  # a name is no command to the terminal


def test_what_it_cost_is_told_if_somebody_says_the_price(two: list[facts.Run]) -> None:
    hours = two[0].history.rank_hours
    text = shown(two[:1], costs=Costs(price=2.0, watts=5000))
    assert f"cost {2 * hours:,.2f}" in text
    assert "kWh" in text
    assert "kWh" not in shown(two[:1])


def test_markdown_escapes_and_compares(two: list[facts.Run]) -> None:
    text = markdown(two)
    assert "## a\n" in text
    assert "## b␛\\[31m\\|\n" in text
    assert "| optim.lr | 0.0006 | 0.0003 |" in text
    assert "overnight train gpt2-124m --run" in text
    assert "\x1b" not in text
