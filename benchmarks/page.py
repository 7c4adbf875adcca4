"""docs/performance.md, docs/recipes.md and the README's figures, from the results that are committed.

    python benchmarks/page.py [--check]     --check: exit code 1 where they are not what the results say

The words are those of performance.template.md; its tables are in performance_tables.py, the README's in
readme_table.py.
"""

import sys
from pathlib import Path

import gpu_page
import readme_table
import recipes_page
from performance_tables import TABLES
from tables import measured, table

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
BEGIN, END = "<!-- figures: benchmarks/page.py -->", "<!-- end of figures -->"


def page() -> str:
    text = (HERE / "performance.template.md").read_text()
    for name, (result, make) in TABLES.items():
        found = f"{make()}\n\n{measured(result)}"
        text = text.replace(f"{{{{{name}}}}}", found)
    return text


def readme() -> str:
    before, rest = README.read_text().split(BEGIN)
    on_cpu = table(["what", "figure", "beside it"], list(readme_table.rows()))
    on_gpu = table(["what", "figure", "the aim"], [*gpu_page.rows(), gpu_page.crossing_row()])
    figures = f"{on_cpu}\n\nOn a GPU: {measured('gpu')}.\n\n{on_gpu}"
    return f"{before}{BEGIN}\n{figures}\n{END}{rest.split(END)[1]}"


def main(*options: str) -> int:
    for path, text in ((PAGE, page()), (README, readme()), (recipes_page.PAGE, recipes_page.page())):
        if "--check" not in options:
            path.write_text(text)
        elif path.read_text() != text:
            print(f"{path.name} is not what the results say: python benchmarks/page.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
