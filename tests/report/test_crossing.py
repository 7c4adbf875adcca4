"""What the loss that one run ends with cost another."""

from pathlib import Path
from typing import Any

import pytest
from tests.report.made import Night, lecture, make_run

from overnight.report.crossing import crossings
from overnight.report.facts import label, open_run


def run_of(
    folder: Path, name: str, losses: dict[int, float], seconds: float, data: str | None = "d", **changes: Any
) -> Path:
    """A run of 524,288 tokens and `seconds` a step with these validation losses."""
    night = Night()
    night.event(0, "start")
    last = 0
    for step, loss in losses.items():
        night.train(step, seconds=seconds * (step - last))
        night.validate(step, loss)
        night.event(step, "checkpoint")
        last = step
    run = make_run(folder / name, lecture(folder / name, **changes), night, data)
    night.write(run)
    return run


def told(*runs: Path) -> list[str]:
    opened = [open_run(str(run)) for run in runs]
    label(opened)
    return list(crossings(opened))


SLOW = {1000: 4.0, 2000: 3.5, 4000: 3.25}
FAST = {500: 4.0, 1000: 3.3, 1500: 3.24, 2000: 3.2}


def test_by_hand(tmp_path: Path) -> None:
    """3.25 after 4,000 steps, and by the first validation below it, at 1,500, of the other: 37.5% of them.
    The eight seconds of each earlier validation are part of the time."""
    slow = run_of(tmp_path, "slow", SLOW, seconds=1.0)
    fast = run_of(tmp_path, "fast", FAST, seconds=2.0)
    (sentence,) = told(slow, fast)
    assert sentence == (
        "fast has slow's 3.2500 after 786 M tokens in place of 2.10 B (38%), and 50 min 16 s in place of "
        "1 h 06 min."
    )
    assert told(fast, slow) == [sentence], "in whatever order they are named"


def test_of_three_the_best_is_compared_with_both(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, name, losses, 1.0) for name, losses in (("a", SLOW), ("b", FAST), ("c", {700: 4.0}))
    ]
    assert [sentence.partition(" after ")[0] for sentence in told(*runs)] == [
        "b has a's 3.2500", "b has c's 4.0000",
    ]  # fmt: skip


def test_who_is_better_in_the_end_but_was_not_earlier_says_nothing(tmp_path: Path) -> None:
    late = run_of(tmp_path, "late", {2000: 4.1, 4000: 3.3, 6000: 3.2}, 1.0)
    assert told(run_of(tmp_path, "early", {1000: 3.6, 2000: 3.4}, 1.0), late) == []


def test_a_run_that_began_with_anothers_weights_is_not_compared(tmp_path: Path) -> None:
    fresh = run_of(tmp_path, "a", SLOW, 1.0)
    assert told(fresh, run_of(tmp_path, "b", FAST, 1.0, init_from="runs/c@100")) == []


def test_times_of_other_machines_are_not_compared(tmp_path: Path) -> None:
    slow, fast = run_of(tmp_path, "slow", SLOW, 1.0), run_of(tmp_path, "fast", FAST, 1.0)
    where = fast / "environment.json"
    where.write_text(where.read_text().replace("A100", "H100"))
    assert told(slow, fast) == ["fast has slow's 3.2500 after 786 M tokens in place of 2.10 B (38%)."]


@pytest.mark.parametrize("data", ["other", None])
def test_other_or_unknown_data_is_not_compared(tmp_path: Path, data: str | None) -> None:
    assert told(run_of(tmp_path, "a", SLOW, 1.0), run_of(tmp_path, "b", FAST, 1.0, data)) == []


def test_a_run_alone_or_without_validations_has_nothing_to_say(tmp_path: Path) -> None:
    only, empty = run_of(tmp_path, "a", SLOW, 1.0), run_of(tmp_path, "b", {}, 1.0)
    assert told(only) == told(only, empty) == told(empty, only) == []


def test_losses_over_other_tokens_are_not_compared(tmp_path: Path) -> None:
    """As the whole split at the end, and its beginning on the way."""
    slow, fast = run_of(tmp_path, "slow", SLOW, 1.0), run_of(tmp_path, "fast", FAST, 1.0)
    records = slow / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    lines[-2] = lines[-2].replace("10485760", "99999999")  # its last validation was over all
    records.write_text("".join(lines))
    assert told(slow, fast)[0].startswith("fast has slow's 3.5000 after 524 M tokens in place of 1.05 B")
