"""The verdict: a comparison with published results where they are on the same data, and what happened."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import Outcome
from tests.report.made import Night, fineweb, full_night, lecture, make_run, said


def test_a_run_on_fineweb_is_held_against_published_results(place: Path) -> None:
    fingerprint = fineweb(Path("data/fineweb-edu"))
    night = full_night(100, every=50)
    night.lines = [line for line in night.lines if '"val"' not in line]
    night.validate(100, 3.05)
    config = replace(lecture(place), steps=100)
    lines = said(make_run(place, config, night, fingerprint))
    whose = "OpenAI's GPT-2 124M (lecture notebook)"
    assert lines[0] == ("good", f"Validation loss 3.0500 after 52.4 M tokens: better than 3.2924, {whose}.")
    assert lines[1] == (
        "good",
        f"HellaSwag 0.3040 (acc_norm, completion style, 10,042 items): better than 0.2945, {whose}; "
        "not better than 0.3370, GPT-3 124M (paper; its own way of asking); "
        "not better than 0.4893, OpenAI's GPT-2 1558M.",
    )
    assert ("plain", "On the way: 2 loss spikes, 1 resume.") in lines


def test_data_of_another_fingerprint_proves_nothing(place: Path) -> None:
    fineweb(Path("data/fineweb-edu"))
    lines = said(make_run(place, replace(lecture(place), steps=100), full_night(100), "f" * 64))
    assert not any("better than 3.29" in text for _, text in lines)
    assert lines[-1][0] == "warning"
    assert "is not the data that the run was trained on" in lines[-1][1]


def test_a_real_run_on_a_text_of_its_own_gets_yardsticks_and_no_verdict(run: Path) -> None:
    lines = said(run)
    assert lines[0][1].startswith("Validation loss ")
    assert lines[0][1].endswith(" bits per byte.")
    assert lines[1][1].startswith(
        "No published result is on this text, so there is no verdict. `xz -9e` makes "
    )
    assert "Guessing evenly among 20 tokens would lose 2.9957." in lines[1][1]
    assert lines[2][0] == "good"
    assert lines[2][1].startswith("Complete: 4 of 4 steps, ")


def test_what_a_resume_takes_again_is_counted_once(place: Path) -> None:
    night = Night()
    night.event(0, "start")
    night.event(5, "spike", loss=9.0)
    night.event(8, "nonfinite", loss=None)
    night.event(9, "gone_back", steps=[8, 9], to=4)
    night.event(4, "resume")
    night.event(5, "spike", loss=9.0)
    make_run(place, lecture(place), night)
    happened = "1 loss spike, 1 update that was not finite, 1 return to an earlier checkpoint"
    assert ("warning", f"On the way: {happened}.") in said(place)


@pytest.mark.parametrize("missing", ["config.json", "environment.json", "records.jsonl"])
def test_a_broken_run_is_reported_as_far_as_it_goes(
    run: Path, missing: str, cli: Callable[..., Outcome]
) -> None:
    (run / missing).unlink()
    assert cli("report", "x").code == 0
    assert (run / "report.html").is_file()
    (run / missing).write_text("{nonsense\n")
    assert cli("report", "x").code == 0
    for how in ("--json", "--markdown", "--terminal"):
        assert cli("report", "x", how).code == 0


@pytest.mark.parametrize("detail", [None, 5, {}, [], "x" * 100_000, "a\x1b[2J\nb"])
def test_what_an_event_says_is_a_short_line_and_never_none(place: Path, detail: object) -> None:
    night = Night()
    night.event(0, "start")
    night.train(1)
    night.event(1, "unusual_loss", detail=detail)
    make_run(place, lecture(place), night)
    [line] = [text for _, text in said(place) if text.startswith("Step 1: ")]
    assert "None" not in line
    assert len(line) < 600
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.parametrize(("lines", "words"), [(1, "1 damaged line of"), (2, "2 damaged lines of")])
def test_damaged_lines_are_counted(lines: int, words: str, place: Path) -> None:
    run = make_run(place, lecture(place), full_night(4))
    with open(run / "records.jsonl", "a") as file:
        file.write("{\n" * lines)
    assert ("warning", f"{words} records.jsonl {'was' if lines == 1 else 'were'} left out.") in said(run)
