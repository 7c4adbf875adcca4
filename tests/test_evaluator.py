"""HellaSwag while a run trains: the same records on any number of ranks and after any stop."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight import records
from overnight.data.prepare import prepare
from overnight.evals import tasks

Cli = Callable[..., Any]
SMALL = (
    "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 32 "
    "--batch-tokens 128 --optim.warmup-steps 1 --sample.length 4 --eval-every 2 --save-every 2"
).split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tokens of GPT-2, in which any question can be asked."""
    (tmp_path / "text.txt").write_text("the night is long and the model learns. " * 100)
    prepare(f"text:{tmp_path / 'text.txt'}", tmp_path / "data", "gpt2", 1, 10**8)
    return tmp_path / "data"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """23 of them: no number of ranks but one divides that."""
    draw, path = random.Random(1), tmp_path / "h.jsonl"

    def words() -> str:
        return " ".join(draw.choices("the night is long and a model learns".split(), k=draw.randint(1, 9)))

    lines = [
        {"activity_label": "a", "ctx_a": words(), "ctx_b": "", "ctx": words(), "label": draw.randrange(4)}
        | {"endings": [words() for _ in range(4)]}
        for _ in range(23)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def found(run: Path) -> list[tuple[int, float, float, str, int]]:
    fields = ("step", "acc", "acc_norm", "style", "items")
    return [tuple(r[name] for name in fields) for r in records.read(run) if r["kind"] == "hellaswag"]  # type: ignore[misc]


def command(data: Path, run: Path, questions: Path, *more: object) -> list[str]:
    swag = ["--hellaswag-every", "2", "--hellaswag-file", str(questions)]
    return [
        "train",
        "shakespeare-cpu",
        "--data",
        str(data),
        "--run",
        str(run),
        *SMALL,
        *swag,
        *map(str, more),
    ]


def test_hellaswag_is_recorded_when_due_and_at_the_end(
    cli: Cli, data: Path, questions: Path, tmp_path: Path
) -> None:
    done = cli(*command(data, tmp_path / "run", questions, "--steps", 5))
    assert done.code == 0
    assert [step for step, *_ in found(tmp_path / "run")] == [2, 4, 5]
    assert {tuple(rest) for _, _, _, *rest in found(tmp_path / "run")} == {("completion", 23)}
    said = json.loads(
        cli("eval", tmp_path / "run", "--tasks", "hellaswag", "--hellaswag-file", questions, "--json").out
    )
    last = found(tmp_path / "run")[-1]
    assert (said["hellaswag"]["acc"], said["hellaswag"]["acc_norm"]) == last[1:3]
    assert "HellaSwag acc_norm" in done.out


def test_a_resumed_run_and_two_ranks_say_the_same(
    cli: Cli, data: Path, questions: Path, tmp_path: Path
) -> None:
    whole, halves, ranks = tmp_path / "whole", tmp_path / "halves", tmp_path / "ranks"
    assert cli(*command(data, whole, questions, "--steps", 6)).code == 0
    # The learning rate depends on the number of steps: level, so that 4 and then 6 are 6.
    level = ["--optim.schedule", "constant"]
    assert cli(*command(data, tmp_path / "level", questions, "--steps", 6, *level)).code == 0
    assert cli(*command(data, halves, questions, "--steps", 4, *level)).code == 0
    assert cli(*command(data, halves, questions, "--steps", 6, *level)).code == 0
    assert found(halves) == found(tmp_path / "level")
    two = [
        sys.executable,
        "-m",
        "overnight",
        *command(data, ranks, questions, "--steps", 6, "--processes", 2),
    ]
    subprocess.run(two, check=True, capture_output=True, timeout=120)
    assert found(ranks) == found(whole)


def test_items_are_limited_and_the_file_is_checked_before_step_0(
    cli: Cli, data: Path, questions: Path, tmp_path: Path
) -> None:
    assert cli(*command(data, tmp_path / "run", questions, "--steps", 1, "--hellaswag-items", 3)).code == 0
    assert found(tmp_path / "run")[-1][-1] == 3
    with open(questions, "a") as file:
        file.write("{}\n")
    refused = cli(*command(data, tmp_path / "new", questions, "--steps", 1))
    assert refused.code == 2
    assert "line 24" in refused.err
    assert "--hellaswag-every 0" in refused.err
    assert not (tmp_path / "new").exists()
    short = cli(*command(data, tmp_path / "new", questions, "--steps", 1, "--model.block-size", 4))
    assert short.code == 2


def test_auto_does_without_where_there_is_no_network(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose data is prepared never needs the network; a number is not ignored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "HELLASWAG_URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    go = ["train", "shakespeare-cpu", "--data", data, "--run", "auto", *SMALL, "--steps", 1]
    done = cli(*go, "--hellaswag-every", "auto")
    assert done.code == 0
    assert "HellaSwag is left out" in done.out
    assert json.loads(Path("runs/auto/config.json").read_text())["hellaswag_every"] == 0
    refused = cli(*go[:4], "--run", "other", *SMALL, "--hellaswag-every", 1)
    assert refused.code == 2
    assert "cannot download HellaSwag" in refused.err


def test_the_download_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: Path) -> None:
    from overnight.errors import UserError

    monkeypatch.setattr(tasks, "HELLASWAG_URL", questions.as_uri())
    with pytest.raises(UserError, match="sent 23 lines, not 10,042"):
        tasks.download_hellaswag(tmp_path / "downloads")
    assert not (tmp_path / "downloads").exists()
    monkeypatch.setattr(tasks, "HELLASWAG_ITEMS", 23)
    assert tasks.download_hellaswag(tmp_path / "downloads").read_bytes() == questions.read_bytes()
    questions.unlink()  # once is enough
    assert tasks.download_hellaswag(tmp_path / "downloads").is_file()
