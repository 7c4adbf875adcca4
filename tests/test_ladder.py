"""The ladder: what its rungs are, which are kept, what comes out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight import ladder
from overnight.config import Config, ModelConfig, OptimConfig, TrainConfig
from overnight.errors import Failure
from overnight.stopwatch import Measured

Cli = Callable[..., Any]
CPU = ladder.Place(torch.device("cpu"), "bf16")
GPU = ladder.Place(torch.device("cuda", 0), "bf16")
MODEL = ModelConfig(2, 2, 32, 16, 50_257)


def climb(monkeypatch: pytest.MonkeyPatch, place: ladder.Place, ms: dict[str, float | str]) -> list[Any]:
    """The ladder where a rung takes so long, or fails for a reason, and others take as long as the first."""
    said: list[str] = []

    def measure(config: Config, n_tokens: int, steps: int, seconds: float) -> Measured:
        took = ms.get(said[-1].partition(": ")[2], ms["fp32"])
        if isinstance(took, str):
            raise Failure(took)
        return Measured([took], 1.0, None, 0.0)

    monkeypatch.setattr(ladder, "measure", measure)
    first = ladder.first_config(MODEL, 4, place)
    return list(ladder.climb(first, 50_257, place, 1, 1.0, said.append))


def test_the_lectures_rungs_come_first_in_its_order() -> None:
    """1000 ms fp32, 333 TF32, 300 bf16, 130 compile, 96 flash, 93 vocabulary 50,304, 90 fused AdamW."""
    lecture = [rung.lecture_ms for rung in ladder.RUNGS if rung.lecture_ms]
    assert lecture == [1000, 333, 300, 130, 96, 93, 90]
    assert not any(rung.lecture_ms for rung in ladder.RUNGS[len(lecture) :])


def test_the_top_is_what_train_does_by_itself_on_a_gpu() -> None:
    config = ladder.first_config(MODEL, 4, GPU)
    for rung in ladder.RUNGS:
        config = config if rung.obstacle is ladder.no_onednn else rung.change(config, GPU)
    assert (config.precision, config.compile) == ("bf16", "on")
    assert config.model == replace(MODEL, vocab_size=50_304)
    assert config.optim.fused == OptimConfig().fused
    assert config.train == replace(TrainConfig(), products="mkl")  # which is a CPU's affair


def test_a_rung_that_is_slower_is_not_stood_upon(monkeypatch: pytest.MonkeyPatch) -> None:
    ms = {"fp32": 100.0, "torch.compile": 101.0, "flash attention": 200.0, "vocabulary 50,304": 50.0}
    ms |= {"fused AdamW": 51.0, "logits in parts": 40.0, "oneDNN's products": 25.0}
    monkeypatch.setattr(ladder, "no_half", lambda config, place: "none")
    found = {one.name: one for one in climb(monkeypatch, CPU, ms)}
    assert not found["torch.compile"].kept, "it has to be faster, since every start is slower"
    assert not found["flash attention"].kept
    assert found["vocabulary 50,304"].config.model.attention == "manual"
    assert found["vocabulary 50,304"].gain == 2.0
    assert found["fused AdamW"].kept, "within what a machine's speed varies"
    assert found["logits in parts"].gain == pytest.approx(51 / 40)
    assert found["logits in parts"].options == {"model.logits": "parts"}


def test_what_a_machine_cannot_do_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder.machine, "cpu_field", lambda name: "avx2 avx512f")
    found = {one.name: one for one in climb(monkeypatch, CPU, {"fp32": 9.0, "flash attention": "no room"})}
    assert found["TF32"].reason == "a mode of CUDA's matrix units"
    assert found["bf16"].reason == "this CPU has no bf16 in hardware"
    assert found["bf16 residual stream"].reason == "a matter of bf16"
    assert found["fastest attention"].reason == "a matter of cuda"
    assert found["flash attention"].reason == "no room"
    assert found["fused AdamW"].gain == 1.0
    assert [one.found for one in found.values() if one.reason] == [None] * 6


def test_where_the_first_does_not_fit_the_next_stands_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = climb(monkeypatch, CPU, {"fp32": "out of memory", "torch.compile": 5.0, "flash attention": 4.0})
    by_name = {one.name: one for one in found}
    assert by_name["torch.compile"].gain is None
    assert by_name["torch.compile"].kept
    assert by_name["flash attention"].gain == 1.25


def test_the_verb_measures_and_writes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("fp32", "TF32", "flash attention")
    monkeypatch.setattr(ladder, "RUNGS", [rung for rung in ladder.RUNGS if rung.pattern in few])
    out = tmp_path / "new" / "mine.json"
    for _ in range(2):  # a ladder's own file is written again
        outcome = cli("ladder", "--out", out, "--device", "cpu", "--micro-batch", 1, "--steps", 1)
        assert (outcome.code, outcome.out.count("flash attention")) == (0, 1)
    found = json.loads(out.read_text())
    assert found["complete"]
    assert [rung["name"] for rung in found["rungs"]] == list(few)
    measured = [rung for rung in found["rungs"] if not rung["reason"]]
    assert [rung["tokens_per_second"] > 0 for rung in measured] == [True, True]
    assert measured[0]["loss"] == pytest.approx(measured[1]["loss"], abs=1e-4)
    page = out.with_suffix(".html").read_text()
    assert "plotly" in page
    assert "TF32 (a mode of CUDA&#x27;s matrix units)" in page
    assert "<script src" not in page
    assert "<link" not in page


@pytest.mark.parametrize("found", [Failure("no room"), Measured([1.0], float("nan"), None, 0.0)])
def test_a_ladder_on_which_nothing_works_fails(
    found: Any, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> Measured:
        if isinstance(found, Failure):
            raise found
        return found

    monkeypatch.setattr(ladder, "measure", measure)
    outcome = cli("ladder", "--out", tmp_path / "l.json", "--device", "cpu")
    assert outcome.code == 1
    reason = "no room" if isinstance(found, Failure) else "the loss is not a number"
    assert f"nothing could be measured: {reason}" in outcome.err
    written = json.loads((tmp_path / "l.json").read_text())
    assert {(rung["kept"], rung["loss"]) for rung in written["rungs"]} == {(False, None)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--out figures.txt", "does not end in .json"),
        ("--out notes.json", "notes.json exists and is not a ladder's"),
        ("--out broken.json", "broken.json exists and is not a ladder's"),
        ("--out folder.json", "folder.json is a folder"),
        ("--out notes.json/ladder.json", "notes.json is a file"),
        ("--out mine.json", "mine.html exists and is not a ladder's"),
        (f"--out {'a' * 300}.json", "cannot be written: File name too long"),
        ("--preset gpt2-124", "Did you mean gpt2-124m?"),
        ("--steps 0", "steps is 0: give 1 or more."),
        ("--micro-batch 0", "micro-batch is 0: give 1 or more."),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(
    arguments: str, words: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "mine.html").write_text("precious")
    before = tree(tmp_path)
    outcome = cli("ladder", *arguments.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert tree(tmp_path) == before
