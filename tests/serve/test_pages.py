"""Dashboard and playground in a real browser, over a real server."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from tests.browser import FAINT, UNLABELLED, browser, needs_chromium, opened
from tests.conftest import TINY
from tests.serve.running import Server, serving

__all__ = ["browser"]
pytestmark = needs_chromium

LAST = "[data-chart=lr] .scatterlayer path"
DEED = "document.title = 'broken in'"
EVIL = f'<script>{DEED}</script><img src=x onerror="{DEED}">'
PLOTLY_READY = 15_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    with serving(trained, "--max-tokens", "1000000") as one:
        yield one


def test_the_dashboard_follows_a_training(browser: Browser, data_folder: Path, tmp_path: Path) -> None:
    """A record is on the screen within two seconds of being written, and nobody touches the page."""
    run = tmp_path / "runs" / "x"
    options = [*TINY, "--steps", "100000", "--eval-every", "100000", "--save-every", "100000"]
    command = [sys.executable, "-m", "overnight", "train", "shakespeare-cpu", "--data", str(data_folder)]
    training = subprocess.Popen(
        [*command, "--run", str(run), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "records.jsonl").is_file() or (run / "records.jsonl").stat().st_size < 2000:
            assert training.poll() is None
            time.sleep(0.05)
        with serving(run) as server:
            watched = opened(browser)
            watched.page.goto(server.url)
            watched.page.wait_for_selector(LAST, state="attached", timeout=PLOTLY_READY)
            expect(watched.page.locator("#verdict")).to_contain_text("Training: ")
            steps = [shown(watched.page.locator("#verdict").inner_text())]
            for _ in range(3):
                written = json.loads((run / "records.jsonl").read_text().splitlines()[-2])["step"]
                began = time.monotonic()
                while shown(watched.page.locator("#verdict").inner_text()) < written:
                    assert time.monotonic() - began < 20  # two seconds where nothing else runs: benchmarks/
                    watched.page.wait_for_timeout(20)
                steps.append(shown(watched.page.locator("#verdict").inner_text()))
            assert steps == sorted(set(steps))
            ends = "document.querySelector('[data-chart=loss]').data.map(trace => trace.x.at(-1))"
            assert max(watched.page.evaluate(ends)) >= steps[1]
            assert watched.complaints == []
    finally:
        training.terminate()
        training.wait()


def shown(verdict: str) -> int:
    """The step in 'Training: 1,234 of 100,000 steps'."""
    found = re.search(r"Training: ([\d,]+) of", verdict)
    assert found
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/playground"])
def test_pages_can_be_read_and_used_by_all(browser: Browser, server: Server, path: str, scheme: str) -> None:
    for width in (1200, 360):
        watched = opened(browser, scheme, width)
        watched.page.goto(server.url + path)
        if path == "/":
            watched.page.wait_for_selector(LAST, state="attached", timeout=PLOTLY_READY)
        assert watched.page.evaluate(FAINT) == []
        assert watched.page.evaluate(UNLABELLED) == []
        assert watched.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert watched.complaints == []


def test_a_completion_streams_into_the_playground(browser: Browser, server: Server) -> None:
    watched = opened(browser)
    page = watched.page
    page.goto(f"{server.url}/playground")
    page.get_by_label("Prompt").fill("the night")
    page.get_by_label("temperature").fill("0")
    page.get_by_label("samples", exact=True).fill("2")
    page.get_by_label("tokens").fill("200000")
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#samples pre")).to_have_count(2)
    page.locator("#samples pre").nth(1).locator(".token").first.wait_for()
    before = page.locator("#samples pre").first.inner_text()
    assert before.startswith("the night")
    page.wait_for_timeout(300)
    assert len(page.locator("#samples pre").first.inner_text()) > len(before)  # it is still being written
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#state")).to_have_text("Stopped.")
    page.get_by_label("tokens").fill("12")
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator("#state")).to_contain_text("24 tokens in ")
    asked = {"model": "x", "prompt": "the night", "max_tokens": 12, "temperature": 0}
    text = server.complete(**asked).json["choices"][0]["text"]
    assert page.locator("#samples pre").first.text_content() == "the night" + text
    assert set(watched.complaints) == {f"failed: {server.url}/v1/completions"}  # the one that was stopped


def test_a_token_tells_what_else_might_have_stood_there(browser: Browser, server: Server) -> None:
    page = opened(browser).page
    page.goto(f"{server.url}/playground")
    page.get_by_label("Prompt").fill("the night")
    page.get_by_label("temperature").fill("0")
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#state")).to_contain_text("tokens/s")
    page.locator(".token").nth(2).hover()
    rows = page.locator("#token tbody tr")
    expect(rows).to_have_count(5)  # the likeliest five, of which the drawn one is the first
    assert "(drawn)" in rows.first.inner_text()
    shares = [float(row.split("\t")[1].rstrip("%")) for row in rows.all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    first = rows.first.inner_text()
    page.get_by_label("Sample 1").focus()  # and without a mouse
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".token.chosen").count() == 1
    assert rows.first.inner_text() == first


def test_what_is_wrong_is_said_beside_the_button(browser: Browser, server: Server) -> None:
    page = opened(browser).page
    page.goto(f"{server.url}/playground")
    page.get_by_label("Prompt").fill("ü")
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#state")).to_contain_text("'ü'")
    expect(page.get_by_role("button", name="Write")).to_be_enabled()


def test_texts_are_no_code_on_either_page(browser: Browser, run: Path) -> None:
    """Samples, prompts and events that try: what a model writes is nobody's program."""
    lines = (run / "records.jsonl").read_text().splitlines()
    head = {"step": 4, "tokens": 256, "time": "2026-11-24T20:00:00.000Z"}
    lines.append(json.dumps(head | {"kind": "sample", "prompt": EVIL, "text": EVIL}))
    lines.append(json.dumps(head | {"kind": "event", "name": EVIL, "detail": {EVIL: EVIL}}))
    (run / "records.jsonl").write_text("".join(line + "\n" for line in lines))
    with serving(run) as server:
        watched = opened(browser)
        watched.page.goto(server.url)
        watched.page.wait_for_selector(LAST, state="attached", timeout=PLOTLY_READY)
        assert "<script>" in watched.page.locator("#samples").inner_text()
        watched.page.goto(f"{server.url}/playground")
        watched.page.get_by_label("Prompt").fill("the")
        watched.page.evaluate("prompt => { document.getElementById('prompt').value = prompt; }", EVIL)
        watched.page.get_by_role("button", name="Write").click()
        expect(watched.page.locator("#state")).to_contain_text("is not one of the")
        assert watched.page.title() == "x"
        assert watched.page.locator("main img").count() == 0


def test_the_dashboard_says_when_its_server_is_gone(browser: Browser, trained: Path) -> None:
    with serving(trained) as server:
        page = opened(browser).page
        page.goto(server.url)
        page.wait_for_selector(LAST, state="attached", timeout=PLOTLY_READY)
    expect(page.locator("#connection")).to_contain_text("The server does not answer", timeout=20_000)


def test_a_part_that_the_reader_opened_stays_open(browser: Browser, run: Path) -> None:
    with serving(run) as server:
        page = opened(browser).page
        page.goto(server.url)
        page.wait_for_selector(LAST, state="attached", timeout=PLOTLY_READY)
        page.locator("#events summary").click()
        head = {"kind": "event", "step": 4, "tokens": 256, "time": "2026-11-24T20:00:00.000Z"}
        with open(run / "records.jsonl", "a") as file:
            file.write(json.dumps(head | {"name": "news", "detail": {}}) + "\n")
        expect(page.locator("#events details[open]")).to_contain_text("news", timeout=20_000)
