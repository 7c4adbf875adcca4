"""`overnight eval`: the loss as JSON and as a table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_eval_prints_the_contracts_json(run: Path, cli: Cli, data_folder: Path) -> None:
    """The numbers are those that the run recorded at its end."""
    done = cli("eval", "x", "--data", data_folder, "--json", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    lines = (run / "records.jsonl").read_text().splitlines()
    last = [record for line in lines if (record := json.loads(line))["kind"] == "val"][-1]
    expected = {"loss": last["loss"], "bits_per_byte": last["bits_per_byte"], "tokens": last["val_tokens"]}
    assert json.loads(done.out) == {
        "val": pytest.approx(expected),
        "model": {"name": "x@4", "step": 4, "damaged": []},
    }


def test_eval_shows_the_same_numbers_in_a_table(run: Path, cli: Cli, data_folder: Path) -> None:
    del run
    for options in ((), ("--context", 8), ("--val-tokens", 100)):
        arguments = ["eval", "x@2", "--data", data_folder, "--device", "cpu", *options]
        numbers = json.loads(cli(*arguments, "--json").out)["val"]
        table = cli(*arguments)
        assert table.code == 0
        assert table.out.startswith(f"runs/x at step 2 on {data_folder}\n")
        assert f" {numbers['loss']:.4f} " in table.out
        assert f" {numbers['bits_per_byte']:.4f} " in table.out
        assert f"{numbers['tokens']:,} tokens" in table.out
        assert "--val-tokens" not in options or numbers["tokens"] == 100
