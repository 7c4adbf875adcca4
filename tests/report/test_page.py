"""The report as a reader has it: opened from the disk, without a network, in a real browser."""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from playwright.sync_api import Browser
from tests.browser import FAINT, UNLABELLED, browser, needs_chromium, opened
from tests.report.made import fineweb, full_night, lecture, make_run

from overnight.report import facts
from overnight.report.figures import COLOURS, GREY, figures
from overnight.report.page import page
from overnight.report.parts import spread

__all__ = ["browser"]

DEED = "document.title = 'broken in'"
EVIL = f'<script>{DEED}</script><img src=x onerror="{DEED}">\x1b[31m'
LAST = "[data-chart=lr] .scatterlayer path"  # drawn last; a level line has no height and counts as hidden


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on (what proves itself to be) FineWeb-Edu, whose texts try to be a page's code."""
    home = tmp_path_factory.mktemp("home")
    fingerprint = fineweb(home / "data" / "fineweb-edu")
    for name, lr in (("x", 6e-4), ("<b>y", 3e-4)):
        night = full_night(600, every=100)
        night.record("sample", 600, prompt=EVIL, text=EVIL)
        night.event(600, EVIL, **{EVIL: EVIL})
        run = home / "runs" / name
        config = lecture(run, steps=600)
        make_run(run, config, night, fingerprint)
        described = json.loads((run / "config.json").read_text())
        described["optim"]["lr"] = lr
        described["sample"]["prompt"] = EVIL
        described["preset"] = EVIL if name != "x" else "gpt2-124m"
        (run / "config.json").write_text(json.dumps(described))
    return home


def read(*runs: Path) -> list[facts.Run]:
    found = [facts.open_run(str(run)) for run in runs]
    facts.label(found)
    return found


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    path = place / "alone.html"
    path.write_text(page(read(place / "runs" / "x")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def both(place: Path) -> Path:
    path = place / "both.html"
    path.write_text(page(read(place / "runs" / "x", place / "runs" / "<b>y")), encoding="utf-8")
    return path


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("which", ["alone", "both"])
def test_it_draws_all_its_charts_without_a_complaint(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    watched = opened(browser, scheme, width, offline=True)
    watched.page.goto(request.getfixturevalue(which).as_uri())
    watched.page.wait_for_selector(LAST, state="attached")
    assert watched.complaints == []
    shown = watched.page.locator(".chart:visible")
    assert shown.count() == 6
    for name in ("loss", "hellaswag", "tokens_per_second", "mfu", "grad_norm", "lr"):
        assert watched.page.locator(f"[data-chart={name}] .scatterlayer .trace path.js-line").count() >= 1
    assert watched.page.evaluate(FAINT) == []
    assert watched.page.evaluate(UNLABELLED) == []
    assert watched.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "broken in" not in watched.page.title()
    assert watched.page.locator("main img").count() == 0


@needs_chromium
def test_the_axis_is_chosen_by_keyboard(browser: Browser, alone: Path) -> None:
    watched = opened(browser, offline=True)
    watched.page.goto(alone.as_uri())
    title = watched.page.locator("[data-chart=loss] .xtitle")
    title.wait_for()
    assert title.text_content() == "step"
    watched.page.get_by_label("steps").focus()
    watched.page.keyboard.press("ArrowRight")
    assert title.text_content() == "tokens"
    published = (
        "() => document.querySelector('[data-chart=loss]').data.filter(t => t.name.includes('lecture'))"
    )
    assert watched.page.evaluate(published)[0]["x"][0] == 250 * 524_288
    watched.page.keyboard.press("ArrowRight")
    assert title.text_content() == "hours of training"
    assert watched.page.evaluate(published)[0]["visible"] is False
    assert watched.complaints == []


@needs_chromium
def test_the_first_tab_leads_to_the_curves(browser: Browser, alone: Path) -> None:
    watched = opened(browser, offline=True)
    watched.page.goto(alone.as_uri())
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.textContent") == "To the curves"


@needs_chromium
def test_on_paper_it_is_black_on_white(browser: Browser, alone: Path) -> None:
    watched = opened(browser, scheme="dark", offline=True)
    watched.page.goto(alone.as_uri())
    watched.page.wait_for_selector(LAST, state="attached")
    watched.page.emulate_media(media="print")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert watched.page.locator("[data-chart=loss] .xtick text").first.evaluate(
        "e => getComputedStyle(e).fill"
    ) == "rgb(0, 0, 0)"  # fmt: skip
    assert not watched.page.locator(".controls").is_visible()
    assert watched.page.evaluate(FAINT) == []


def test_nothing_of_a_text_is_code(both: Path) -> None:
    """Besides our own scripts there is none, whatever texts say, and the content policy names just those."""
    content = both.read_text("utf-8")
    assert len(re.findall(r"<script[ >]", content)) == 4
    assert "&lt;script&gt;document.title" in content
    assert "<img" not in content.split("</style>")[1].split("<script")[0]
    assert content.count("'sha256-") == 3
    assert "default-src 'none'" in content
    assert "\x1b" not in content


def test_nothing_is_fetched(alone: Path) -> None:
    """No attribute of the page's own names another place."""
    skeleton = re.sub(r"<script.*?</script>|<style.*?</style>", "", alone.read_text("utf-8"), flags=re.S)
    assert re.findall(r"(?:src|href)=\"(?!#)", skeleton) == []


def test_several_runs_are_told_apart_and_their_differences_named(both: Path) -> None:
    content = both.read_text("utf-8")
    row = re.search(r"<tr><th scope=\"row\">optim.lr</th>(.*?)</tr>", content)
    assert row
    assert row[1] == "<td>0.0006</td><td>0.0003</td>"
    assert "<h3>&lt;b&gt;y</h3>" in content
    assert facts.DIFFERENT_DATA not in content


def test_runs_on_different_data_are_not_compared_silently(place: Path) -> None:
    one, other = read(place / "runs" / "x", place / "runs" / "<b>y")
    other.extra["data_fingerprint"] = "f" * 64
    assert facts.DIFFERENT_DATA in page([one, other])


def test_plotly_knows_every_field_that_we_write(place: Path) -> None:
    for compared in (read(place / "runs" / "x"), read(place / "runs" / "x", place / "runs" / "<b>y")):
        drawn = figures(compared)
        assert list(drawn) == ["loss", "hellaswag", "tokens_per_second", "mfu", "grad_norm", "lr"]
        for figure in drawn.values():
            go.Figure({"data": figure["data"], "layout": figure["layout"]})  # raises for unknown ones


def test_the_loss_has_its_references_and_events(place: Path) -> None:
    figure = figures(read(place / "runs" / "x"))["loss"]
    names = [trace["name"] for trace in figure["data"]]
    assert names[:3] == ["train, every step", "train", "validation"]
    assert any("build-nanogpt#30" in name for name in names)
    strip = [trace for trace in figure["data"] if trace.get("yaxis") == "y2"]
    assert [(trace["name"], trace["meta"]["steps"]) for trace in strip] == [
        ("saved", [100, 200, 300, 400, 500, 600]), ("resume", [400]), ("spike", [200, 300])
    ]  # fmt: skip
    assert "sigmas 31" in strip[-1]["text"][0]
    assert [note["text"] for note in figure["layout"]["annotations"]] == [
        "OpenAI&#x27;s GPT-2 124M (lecture notebook): 3.292"
    ]


def test_spikes_are_in_the_drawn_curve_and_in_the_first_view(place: Path) -> None:
    run = read(place / "runs" / "x")
    figure: dict[str, Any] = figures(run)["loss"]
    highest = max(run[0].history.train["loss"][199], run[0].history.train["loss"][299])
    assert any(value == pytest.approx(highest, abs=1e-4) for value in figure["data"][0]["y"])
    assert figure["layout"]["yaxis"]["range"][1] > highest


def test_every_colour_of_a_curve_stands_out_on_light_and_on_dark() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*COLOURS, GREY):
        for paper in ("#ffffff", "#14171b"):
            low, high = sorted([luminance(colour), luminance(paper)])
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, paper)


def test_samples_are_shown_from_the_first_step_to_the_last() -> None:
    steps = list(range(250, 19_250, 250))
    shown = spread(steps, 10)
    assert (shown[0], shown[-1], len(shown)) == (250, 19_000, 10)
    assert spread([1, 2, 3], 10) == [1, 2, 3]
