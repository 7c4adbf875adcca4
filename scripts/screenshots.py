"""The README's pictures, of a real run: report, dashboard and playground as a browser shows them.

    python scripts/screenshots.py runs/quickstart "def main("

Needs Chromium and playwright. Writes docs/images/*.png.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
WIDTH = 1100


def shoot(page: Page, name: str, height: int) -> None:
    page.wait_for_timeout(500)  # for what still moves
    page.screenshot(path=IMAGES / f"{name}.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
    print(IMAGES / f"{name}.png")


def main(run: str, prompt: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    overnight = [sys.executable, "-m", "overnight"]
    subprocess.run([*overnight, "report", run], check=True)
    server = subprocess.Popen([*overnight, "serve", run, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        server.stdout.readline()
        address = server.stdout.readline().strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page(viewport={"width": WIDTH, "height": 900})
            page.goto((Path(run) / "report.html").resolve().as_uri())
            page.wait_for_selector("[data-chart=lr] .scatterlayer path", state="attached")
            shoot(page, "report", 860)
            page.emulate_media(color_scheme="dark")
            page.goto(address)
            page.wait_for_selector("[data-chart=lr] .scatterlayer path", state="attached")
            shoot(page, "dashboard", 860)
            page.emulate_media(color_scheme="light")
            page.goto(f"{address}playground")
            page.get_by_label("Prompt").fill(prompt)
            page.get_by_role("button", name="Write").click()
            page.locator("#state", has_text="tokens/s").wait_for()
            page.locator(".token").nth(7).hover()
            shoot(page, "playground", int(page.evaluate("document.body.scrollHeight")))
            browser.close()
    finally:
        server.terminate()
        server.wait()


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("no Chromium here (Debian: apt install chromium)")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
