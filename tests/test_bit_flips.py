"""One flipped bit in any file of a run or a data folder is noticed, or changes nothing that is computed."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Outcome
from tests.editing import flip

from overnight import records

Cli = Callable[..., Outcome]
FLIPS = 40  # per file: each evaluates a model, or refuses to


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, trained: Path, data_folder: Path) -> Path:
    """A folder with a run of one checkpoint and its data."""
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(trained, folder / "run")
    for step in (1, 2, 3):
        shutil.rmtree(folder / "run" / "checkpoints" / f"step_0000000{step}")
    shutil.copytree(data_folder, folder / "data")
    return folder


def evaluate(cli: Cli, folder: Path) -> Outcome:
    return cli("eval", folder / "run", "--data", folder / "data", "--json", "--device", "cpu")


STATE = "run/checkpoints/step_00000004/state.json"
FILES = ["run/config.json", "run/tokenizer.json", STATE, STATE.replace("state.json", "model.safetensors")]
FILES += ["data/manifest.json", "data/tokenizer.json", "data/val_000000.bin"]


@pytest.mark.parametrize("name", FILES)
def test_an_evaluation_is_refused_or_right(name: str, sound: Path, cli: Cli, tmp_path: Path) -> None:
    expected = json.loads(evaluate(cli, sound).out)
    assert expected["model"].pop("damaged") == []
    folder = Path(shutil.copytree(sound, tmp_path / "folder"))
    path, draw, noticed = folder / name, random.Random(name), 0
    size = path.stat().st_size
    for byte in draw.sample(range(size), min(FLIPS, size)):
        bit = draw.randrange(8)
        flip(path, byte, bit)
        done = evaluate(cli, folder)
        flip(path, byte, bit)
        noticed += done.err != ""
        assert "Traceback" not in done.err
        if done.code == 0:
            found = json.loads(done.out)
            expected["model"]["name"] = found["model"]["name"]
            damaged = found["model"].pop("damaged")
            assert found == expected, f"byte {byte}, bit {bit}"
            assert bool(damaged) == (done.err != ""), f"byte {byte}, bit {bit}"
        else:
            assert (done.code, done.out) == (2, "")
            assert 1 <= len(done.err.splitlines()) <= 3
    # What is not noticed is white space, and the letter case of what is compared without it.
    assert noticed > 0.8 * min(FLIPS, size)


@pytest.mark.parametrize("name", ["train_000001.bin", "val_000000.bin"])
def test_every_flip_in_a_shard_is_found_by_verify(name: str, sound: Path, cli: Cli, tmp_path: Path) -> None:
    data = Path(shutil.copytree(sound / "data", tmp_path / "data"))
    draw = random.Random(name)
    options = ["train", "shakespeare-cpu", "--data", data, "--run", tmp_path / "run", "--verify"]
    for byte in draw.sample(range((data / name).stat().st_size), 12):
        flip(data / name, byte, 0)
        refused = cli(*options, "--device", "cpu")
        assert (refused.code, name in refused.err) == (2, True)
        flip(data / name, byte, 0)


@pytest.mark.parametrize("damage", ["a flip", "cut", "missing", "a line missing"])
def test_damaged_records_are_noticed_kept_and_gone_on_from(
    damage: str, run: Path, train: Callable[..., Outcome]
) -> None:
    """The checkpoint knows how long they were, and their SHA-256."""
    path = run / "records.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if damage == "a flip":
        flip(path, content.index(b'"loss": ') + 9, 0)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:2] + lines[3:]))
    complete = train(run)
    assert complete.code == 0
    assert "records.jsonl" in complete.out
    assert "nothing to do" in complete.out
    longer = train(run, "--steps", 6)
    assert longer.code == 0
    assert "records.jsonl" in longer.out
    assert (run / "damaged_records_1.jsonl").exists()
    resumes = [r for r in records.sound(run) if r["kind"] == "event" and r["name"] == "resume"]
    assert any("records.jsonl" in note for note in resumes[-1]["detail"]["notes"])
    assert train(run, "--steps", 6).out.endswith("nothing to do.\n")
