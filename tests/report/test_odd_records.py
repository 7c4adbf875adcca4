"""Whatever numbers, texts and amounts the records hold: every form of a report is made, and stays small."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.console import Console
from tests.report.made import Night, full_night, lecture, make_run

from overnight.report import facts, page
from overnight.report.parts import LONGEST, MOST, sections
from overnight.report.summary import Costs, summary
from overnight.report.words import markdown, show

numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2**53, 10**400, -(10**400), 1e-320, 1.7e308, -1.7e308, math.inf, math.nan, 1e100]
    ),
    st.floats(),
    st.integers(),
    st.none(),
    st.text(max_size=3),
    st.just("\ud800\udcff\x1b"),
)
COLUMNS = (
    "loss", "lr", "grad_norm", "step_ms", "tokens_per_second", "mfu", "bits_per_byte", "val_tokens", "acc",
    "acc_norm", "items", "style", "elapsed", "prompt", "text",
)  # fmt: skip
rows = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["train", "val", "hellaswag", "sample", "event"]),
        "step": st.one_of(st.integers(0, 30), st.just(2**53)),
        "tokens": st.one_of(st.integers(0, 10**6), st.just(2**53)),
        "time": st.sampled_from(
            ["2026-11-24T20:00:00Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "x", ""]
        ),
        "name": st.sampled_from(
            ["start", "resume", "spike", "nonfinite", "checkpoint", "done", "unusual_loss", "\x1b[2J\n"]
        ),
        "detail": st.dictionaries(
            st.sampled_from(["world", "changes", "detail", "loss", "\x1b\n"]),
            st.one_of(numbers, st.dictionaries(st.sampled_from(["size"]), numbers)),
            max_size=2,
        ),
        **dict.fromkeys(COLUMNS, numbers),
    }
)  # fmt: skip


def reported(run: facts.Run) -> str:
    """Every form of its report."""
    screen, costs = io.StringIO(), Costs(1e300, 1e300)
    show([run, run], Console(file=screen, width=80, force_terminal=False), costs)
    show([run], Console(file=screen, width=80, force_terminal=False), costs)
    told = json.dumps(summary(run, costs), allow_nan=False)
    shown = page.page([run, run], costs) + page.page([run], costs)
    shown.encode()
    return "\n".join([screen.getvalue(), told, shown, markdown([run, run], costs)])


@examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(rows, max_size=12))
def test_every_number_and_text_is_reported(found: list[dict[str, Any]], tmp_path: Path) -> None:
    make_run(tmp_path / "x", lecture(tmp_path / "x", steps=30), Night())
    (tmp_path / "x" / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    text = reported(facts.open_run(str(tmp_path / "x")))
    assert "\x1b" not in text.replace(page.plotly(), "")


def test_a_million_things_make_a_page_that_opens(tmp_path: Path) -> None:
    """Samples, events, validations and prompts beyond counting; what is left out is counted."""
    run = tmp_path / "x"
    make_run(run, lecture(run), full_night(20, every=5))
    many = 5_000
    with open(run / "records.jsonl", "a") as file:
        for step in range(21, 21 + many):
            head = f'"step": {step}, "tokens": {step}, "time": "2026-11-24T20:00:00Z"'
            file.write(f'{{"kind": "sample", {head}, "prompt": "{step % 700}", "text": "t"}}\n')
            file.write(f'{{"kind": "event", {head}, "name": "spike", "detail": {{}}}}\n')
            file.write(f'{{"kind": "val", {head}, "loss": 3.0, "bits_per_byte": 1.0, "val_tokens": 5}}\n')
    opened = facts.open_run(str(run))
    parts = {name: content for name, (_, content) in sections([opened]).items()}
    assert parts["samples"].count("<pre>") == MOST
    assert f"{many + 4 - MOST:,} more samples are left out here." in parts["samples"]
    for name in ("events", "validations"):
        assert parts[name].count("<tr><td") == MOST
        assert "are left out here." in parts[name]
    assert len(page.page([opened])) - len(page.plotly()) < 2_000_000


@pytest.mark.parametrize("where", ["sample", "event", "config", "environment", "name"])
def test_a_text_of_megabytes_is_cut(where: str, tmp_path: Path) -> None:
    run, night = tmp_path / "x", full_night(20, every=5)
    long = "<" * 3_000_000
    if where == "sample":
        night.record("sample", 20, prompt=long, text=long)
    if where in ("event", "name"):
        night.event(20, long if where == "name" else "odd", detail=long)
        night.event(20, "unusual_loss", detail=long)
    make_run(run, lecture(run), night)
    for file, change in (
        ("config.json", {"hellaswag_file": long}),
        ("environment.json", {"cpu": long, "gpus": [long]}),
    ):
        if file.startswith(where):
            described = json.loads((run / file).read_text()) | change
            (run / file).write_text(json.dumps(described))
    opened = facts.open_run(str(run))
    shown = page.page([opened])
    assert len(shown) - len(page.plotly()) < 40 * LONGEST
    assert len(markdown([opened])) < 40 * LONGEST
    if where not in ("environment",):
        assert "characters left out)" in shown
