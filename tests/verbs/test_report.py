"""`overnight report`: what it writes, what it prints, what it refuses."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Outcome
from tests.editing import edit, flip

from overnight.report.again import option
from overnight.visible import shell_word

Cli = Callable[..., Outcome]


def test_one_run_gets_its_report_in_its_folder(cli: Cli, run: Path) -> None:
    outcome = cli("report", "x")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Validation loss ")
    assert "runs/x/report.html: verdict, curves and samples" in outcome.out
    content = (run / "report.html").read_text("utf-8")
    assert content.startswith("<!doctype html>")
    assert "<title>x</title>" in content
    assert cli("report", "x").code == 0  # over itself


def test_several_runs_get_one_here(cli: Cli, run: Path, train: Callable[..., Outcome]) -> None:
    assert train(Path("runs/y"), "--optim.lr", 0.01).code == 0
    outcome = cli("report", "x", "runs/y")
    assert outcome.code == 0
    assert outcome.out.count("Validation loss") == 2
    assert "optim.lr" in Path("report.html").read_text("utf-8")


def test_json_is_for_scripts(cli: Cli, run: Path) -> None:
    found = json.loads(cli("report", "x", "--json").out)
    [one] = found["runs"]
    assert found["differences"] == {}
    assert (one["name"], one["state"], one["step"], one["steps"]) == ("x", "complete", 4, 4)
    last = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    val = [record for record in last if record["kind"] == "val"][-1]
    assert (one["loss"], one["bits_per_byte"]) == (val["loss"], val["bits_per_byte"])
    assert one["config"]["model"]["n_embd"] == 16
    assert not (run / "report.html").exists()


def test_its_command_makes_the_same_run(cli: Cli, run: Path, trained: Path) -> None:
    """What "run it again" says, done in a new place, ends with the same weights."""
    words = shlex.split(json.loads(cli("report", "x", "--json").out)["runs"][0]["command"])
    assert words[:3] == ["overnight", "train", "shakespeare-cpu"]
    again = Path(words[words.index("--run") + 1])
    assert again == Path(f"{trained}-again")
    try:
        assert cli(*words[1:]).code == 0
        weights = "checkpoints/step_00000004/model.safetensors"
        assert (again / weights).read_bytes() == (trained / weights).read_bytes()
    finally:
        shutil.rmtree(again, ignore_errors=True)


def test_its_command_keeps_what_was_asked_for_and_quotes_it(
    train: Callable[..., Outcome], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields that the preset leaves to `auto` too; a prompt with quotes, lines and a dash before it."""
    monkeypatch.chdir(tmp_path)
    prompt = "-the night'\n\tis"
    options = ["--micro-batch=2", "--precision=fp32", "--compile=off"]
    assert option("sample.prompt", prompt) == [f"--sample.prompt={prompt}"]
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {shell_word(prompt)}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == prompt
    assert train(Path("runs/z"), *options).code == 0
    command = json.loads(cli("report", "z", "--json").out)["runs"][0]["command"]
    assert "--micro-batch 2" in command
    assert "--precision fp32" in command
    assert "--compile off" in command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN is missing: give one run or more"),
        (["y"], "there is no run runs/y."),
        (["x", "--json", "--markdown"], "--json and --markdown: give one of them."),
        (["x", "--json", "--out", "a.html"], "--out is for the HTML file, --json prints: give one of them."),
        (["x", "--price", "-1"], "price is -1.0: give 0 or more."),
        (["x", "--out", "notes.txt"], "notes.txt exists and is not a report: give another --out."),
        (["x", "--out", "."], ". is a folder: give --out a file's name."),
        (["x", "--out", "notes.txt/a"], "notes.txt is a file, so notes.txt/a cannot be made"),
        (["empty"], "runs/empty is no run"),
    ],
)
def test_wrong_input_is_told_in_a_line(cli: Cli, run: Path, arguments: list[str], said: str) -> None:
    Path("notes.txt").write_text("mine")
    Path("runs/empty").mkdir()
    outcome = cli("report", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert Path("notes.txt").read_text() == "mine"


def test_the_end_of_training_shows_the_verdict(
    cli: Cli, train: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = train(tmp_path / "new", "--steps", 40)
    assert outcome.code == 0
    end = outcome.out.split("Done: ")[1]
    assert "Validation loss " in end
    assert "Complete: 40 of 40 steps" in end
    assert "o validation" in end
    assert "Validation loss" not in train(tmp_path / "new", "--steps", 40).out  # nothing to do


def test_torch_is_not_needed(run: Path) -> None:
    code = "import sys; from overnight import cli; print(cli.run(['report', 'x']), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.endswith("0 False\n")


def test_json_is_json_whatever_the_terminal_is(run: Path) -> None:
    records = (run / "records.jsonl").read_text().replace('"text": "', '"text": "é😀')
    (run / "records.jsonl").write_text(records)
    edit(run / "config.json", lambda config: config["sample"].update(prompt="é😀"))
    code = "import sys; from overnight.cli import main; sys.argv[1:] = ['report', 'x', '--json']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert json.loads(done.stdout)["runs"][0]["config"]["sample"]["prompt"] == "é😀"


def test_the_same_run_twice_is_one(cli: Cli, run: Path) -> None:
    assert len(json.loads(cli("report", "x", "runs/x", "--json").out)["runs"]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("how", ["", "--json", "--markdown", "--terminal"])
def test_an_output_that_has_no_room_is_told_in_a_line(run: Path, how: str) -> None:
    command = [sys.executable, "-m", "overnight", "report", "x", *how.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "overnight: the disk is full: the output is incomplete.\n"


@pytest.mark.parametrize("how", ["cut", "a line less", "another figure"])
def test_records_that_the_checkpoint_does_not_vouch_for_are_named(how: str, run: Path, cli: Cli) -> None:
    path = run / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert "vouches" not in cli("report", "x").out
    if how == "another figure":
        lines[1] = lines[1].replace('"step": ', '"step":  ')
    path.write_text("".join(lines[:3] if how == "cut" else lines[:2] + lines[3:] if "less" in how else lines))
    outcome = cli("report", "x")
    assert outcome.code == 0
    assert "The newest checkpoint vouches for other records (records.jsonl " in outcome.out


def test_a_damaged_state_of_the_newest_checkpoint_is_named(run: Path, cli: Cli) -> None:
    path = run / "checkpoints" / "step_00000004" / "state.json"
    path.write_text(path.read_text().replace('"seed": ', '"seed": 1'))
    outcome = cli("report", "x")
    assert outcome.code == 0
    problem = "The newest checkpoint is damaged: step_00000004: state.json is not the file that was saved."
    assert problem in " ".join(outcome.out.split())


@pytest.mark.parametrize("how", ["damaged", "of another run"])
def test_a_config_that_is_not_the_checkpoints_is_named_and_not_used(
    how: str, run: Path, cli: Cli, train: Callable[..., Outcome]
) -> None:
    true = json.loads(cli("report", "x", "--json").out)["runs"][0]["config"]
    if how == "damaged":
        flip(run / "config.json", 100, 0)
    else:
        assert train(Path("runs/y"), "--optim.lr", 0.01).code == 0
        shutil.copy("runs/y/config.json", run / "config.json")
    [found] = json.loads(cli("report", "x", "--json").out)["runs"]
    assert found["config"] == true
    [problem] = [one["text"] for one in found["verdict"] if "config.json" in one["text"]]
    assert problem.endswith("The checkpoint's copy is used.")
    assert ("it differs in optim.lr" in problem) == (how == "of another run")


def test_an_environment_that_was_changed_is_a_problem_of_the_run(cli: Cli, run: Path) -> None:
    described = (run / "environment.json").read_text()
    (run / "environment.json").write_text(described.replace('"cpus": ', '"cpus": 1'))
    outcome = cli("report", "x")
    assert outcome.code == 0
    assert "environment.json is damaged: its content does not match its checksum" in outcome.out


@pytest.mark.parametrize("bit", [0, 6])
def test_a_damaged_validation_split_is_not_compared_with(
    cli: Cli, run: Path, bit: int, tmp_path: Path
) -> None:
    """Whether the id is another one of the vocabulary, or none."""
    config = json.loads((run / "config.json").read_text())
    shutil.copytree(config["data"], tmp_path / "damaged")
    edit(run / "config.json", lambda described: described.update(data=str(tmp_path / "damaged")))
    flip(tmp_path / "damaged" / "val_000000.bin", 1040, bit)
    outcome = cli("report", "x")
    assert outcome.code == 0
    assert "val_000000.bin has changed since it was made" in outcome.out
    assert "xz" not in outcome.out


def test_data_at_a_path_that_is_too_long_is_a_problem_of_the_run(cli: Cli, run: Path) -> None:
    edit(run / "config.json", lambda described: described.update(data=300 * "x"))
    outcome = cli("report", "x", "--markdown")
    assert (outcome.code, outcome.err) == (0, "")
    assert "cannot be read: File name too long." in outcome.out
