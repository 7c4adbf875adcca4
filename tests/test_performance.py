"""docs/performance.md and the README's figures are what the committed results say."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "benchmarks" / "page.py"


def test_no_figure_in_the_docs_is_older_than_its_result() -> None:
    checked = subprocess.run([sys.executable, PAGE, "--check"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
