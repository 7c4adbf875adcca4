"""`overnight report` of a run of 20,000 steps, and of three such runs, as commands.

    python benchmarks/report.py

The runs' folders are made up (tests/report/made.py); the time includes the start of Python.
"""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tests/report/made.py

from tests.report.made import full_night, lecture, make_run

from common import alternate, overnight, save, summary

STEPS, ROUNDS = 20_000, 7


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        runs = [home / f"run-{number}" for number in range(3)]
        for run in runs:
            make_run(run, replace(lecture(run), steps=STEPS), full_night(STEPS))
        out = home / "report.html"
        seconds = alternate(
            {
                "one run": partial(overnight, "report", runs[0], "--out", out),
                "three runs": partial(overnight, "report", *runs, "--out", home / "several.html"),
                "one run, --json": partial(overnight, "report", runs[0], "--json"),
            },
            ROUNDS,
        )
        sizes = {"one run": out.stat().st_size, "three runs": (home / "several.html").stat().st_size}
    figures = {
        "steps": STEPS,
        "seconds": {work: summary(took, 1.0) for work, took in seconds.items()},
        "page_mb": {work: round(size / 1e6, 2) for work, size in sizes.items()},
    }
    save("report", figures)


if __name__ == "__main__":
    main()
