"""A headless Chromium for pages: Debian's, driven by playwright. Tests that need it skip where it is not."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
# What would make it speak to the network by itself is off; a container's root has no sandbox.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: pages were not looked at")


@dataclass
class Watched:
    """A page, and what it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def opened(browser: Browser, scheme: str = "light", width: int = 1200, offline: bool = False) -> Watched:
    """A fresh page that listens to every error, warning and refused request."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        offline=offline,
    )
    watched = Watched(context.new_page())
    watched.page.on("console", lambda line: watched.complaints.append(f"{line.type}: {line.text}"))
    watched.page.on("pageerror", lambda error: watched.complaints.append(f"error: {error}"))
    watched.page.on(
        "requestfailed", lambda request: watched.complaints.append(f"failed: {request.url[:200]}")
    )
    return watched


# Contrast of each element's own text with the nearest background, as WCAG 2.1 reckons it; those below 4.5:1.
FAINT = """() => {
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    if (!element.checkVisibility()) continue;
    const svg = element instanceof SVGElement, style = getComputedStyle(element);
    const [a, b] = [light(parse(svg ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${element.outerHTML.slice(0, 60)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""

# What a keyboard or a screen reader would stumble over.
UNLABELLED = """() => {
  const named = e => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.title
    || (e.labels && e.labels.length) || e.textContent.trim();
  const asked = "button, input, select, textarea, a[href], [role=img], section";
  const found = [...document.querySelectorAll(asked)]
    .filter(e => e.type !== "hidden" && e.checkVisibility() && !named(e)).map(e => e.outerHTML.slice(0, 100));
  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!document.querySelector("main")) found.push("no main");
  return found;
}"""
