"""Training with torch.compile: one graph, the same model, and a compiler that fails."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.small_run import options
from tests.violence import measured, newest

from overnight import cli


def test_a_compiler_that_fails_costs_one_line(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def no_compiler(function: object, **how: object) -> object:
        raise RuntimeError("no compiler here\nand many more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    run, plain = tmp_path / "run", tmp_path / "plain"
    assert cli.run(options(data_folder, run, "--steps", 3, "--compile", "on")) == 0
    assert capsys.readouterr().out.count("torch.compile does not work here") == 1
    assert cli.run(options(data_folder, plain, "--steps", 3)) == 0
    assert measured(run) == measured(plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_has_one_graph_whatever_is_evaluated(
    precision: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations end in shorter batches and windows, samples grow, steps accumulate: nothing of that is
    compiled, and nothing is compiled again."""
    intact, counters = torch.compile, torch._dynamo.utils.counters
    monkeypatch.setattr(torch, "compile", lambda f, **how: intact(f, backend="aot_eager", **how))
    torch._dynamo.reset()
    counters.clear()
    more = ["--steps", 6, "--compile", "on", "--precision", precision, "--micro-batch", 2]
    more += ["--eval-every", 2, "--val-tokens", 77, "--sample-every", 2, "--sample.length", 30]
    assert cli.run(options(data_folder, tmp_path / "run", *more)) == 0
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiled_run_trains_the_same_model(data_folder: Path, tmp_path: Path) -> None:
    """Evaluation and sampling use the raw module, and the checkpoint has its names."""
    pytest.importorskip("torch._inductor")
    if not any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.get_exec_path()):
        pytest.skip("needs a C++ compiler")
    run, plain = tmp_path / "run", tmp_path / "plain"
    for folder, choice in ((run, "on"), (plain, "off")):
        assert (
            cli.run(options(data_folder, folder, "--steps", 5, "--compile", choice, "--eval-every", 2)) == 0
        )
    for a, b in zip(measured(run), measured(plain), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert (
        load_file(newest(run) / "model.safetensors").keys()
        == load_file(newest(plain) / "model.safetensors").keys()
    )
