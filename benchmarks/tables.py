"""Committed results, and what pages show of them: times, and tables in Markdown."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def there(name: str) -> bool:
    return (RESULTS / f"{name}.json").is_file()


def measured(name: str) -> str:
    """Where, with which torch, when and at which commit a result was measured."""
    found = load(name)["machine"]
    cores = f"{found['cpus']} cores of an {found['cpu']}, {found['cpu_capability']}"
    what = f"{found['gpus'][0] if found['gpus'] else cores}, torch {found['torch']}"
    commit, *dirty = (found["git"] or "no commit").split("-")
    return f"{what}, {found['time'][:10]}, {'-'.join([commit[:9], *dirty])}"


def milliseconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"


def line(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(head: list[str], rows: list[list[object]]) -> str:
    return "\n".join([line(*head), line(*("---" for _ in head)), *(line(*row) for row in rows)])
