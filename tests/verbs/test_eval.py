"""`overnight eval`: the loss as JSON and as a table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit

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


def test_other_data_at_the_place_of_the_runs_is_refused(
    run: Path, cli: Cli, other_data: Path, tmp_path: Path
) -> None:
    edit(run / "config.json", lambda config: config.update(data=str(other_data)))  # the name may change
    done = cli("eval", "x", "--device", "cpu")
    assert done.code == 2
    assert "is not the data that runs/x at step 4 was trained on (fingerprints differ)" in done.err
    assert cli("eval", "x", "--data", other_data, "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"seed": 7}, "seed"),
        ({"data_fingerprint": "ab" * 32}, "the data"),
        ({"optim": {"lr": 0.5}}, "optim.lr"),
    ],
)
def test_the_config_of_another_run_is_not_used(
    run: Path, cli: Cli, change: dict[str, Any], differs: str
) -> None:
    expected = json.loads(cli("eval", "x", "--json", "--device", "cpu").out)

    def put_in(config: dict[str, Any]) -> None:
        config.update(change | ({"optim": config["optim"] | change["optim"]} if "optim" in change else {}))

    edit(run / "config.json", put_in)
    done = cli("eval", "x", "--json", "--device", "cpu")
    problem = f"runs/x/config.json is of another run than the checkpoint: it differs in {differs}."
    assert problem in done.err
    assert json.loads(done.out) == expected | {"model": expected["model"] | {"damaged": [problem]}}


@pytest.mark.parametrize("auto", [5, [[1]], "x", None])
def test_a_list_of_autos_that_is_none_costs_nothing(run: Path, cli: Cli, auto: object) -> None:
    edit(run / "config.json", lambda config: config.update(auto=auto))
    assert cli("eval", "x", "--device", "cpu").code == 0


def test_what_may_change_when_a_run_goes_on_is_no_other_run(run: Path, cli: Cli) -> None:
    edit(run / "config.json", lambda config: config.update(steps=9, save_every=2, val_tokens=100))
    assert cli("eval", "x", "--device", "cpu").err == ""
