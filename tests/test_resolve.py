"""The MODEL grammar: one way everywhere to name a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.editing import edit

from overnight import resolve, runs
from overnight.errors import UserError

CPU = torch.device("cpu")


def refusal(name: str) -> str:
    with pytest.raises(UserError) as raised:
        resolve.load(name, CPU)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("x", "runs/x"), ("x.y", "runs/x.y"), ("runs/x", "runs/x"), ("./x", "x"), ("../x", "../x"),
        ("x/", "x"), (".", "."), ("..", ".."), ("/a/b", "/a/b"), ("a/b", "a/b"),
    ],
)  # fmt: skip
def test_a_bare_name_is_in_runs_and_a_path_stays_a_path(name: str, path: str) -> None:
    assert runs.run_path(name) == Path(path)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("x", 4),
        ("runs/x", 4),
        ("./runs/x", 4),
        ("{run}", 4),
        ("x@2", 2),
        ("runs/x@1", 1),
        ("{run}@00000003", 3),
    ],
)
def test_every_way_to_name_a_run_is_understood(run: Path, name: str, step: int) -> None:
    loaded = resolve.load(name.format(run=run), CPU)
    assert loaded.step == step
    assert loaded.run.samefile(run)
    saved = load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    found = dict(loaded.model.named_parameters())
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[key], saved[key]) for key in saved)
    assert not loaded.model.training
    assert loaded.tokenizer.vocab_size == loaded.model.n_tokens


def test_a_path_may_have_an_at_sign_in_it(run: Path) -> None:
    home = run.parent.parent / "me@work"
    shutil.copytree(run, home / "run")
    assert resolve.load(f"{home}/run", CPU).step == 4
    assert resolve.load(f"{home}/run@2", CPU).step == 2


def test_a_bare_name_means_the_run_that_train_makes_of_it(run: Path) -> None:
    """`train --run x` makes runs/x, so `eval x` reads it, whatever else is called x here."""
    shutil.copytree(run, "x")
    shutil.rmtree(Path("x/checkpoints/step_00000004"))
    assert resolve.load("x", CPU).step == 4
    assert resolve.load("./x", CPU).step == 3


def test_a_missing_step_is_refused_with_those_there(run: Path) -> None:
    for name, step in (("x@9", "9"), ("x@two", "two"), ("x@-1", "-1"), ("x@1.0", "1.0")):
        assert refusal(name) == f"runs/x has no checkpoint of step {step}. It has: 1, 2, 3, 4."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("y", "there is no run runs/y."),
        ("xx", "there is no run runs/xx. Did you mean runs/x? Runs here: runs/x."),
        ("runs/y", "there is no run runs/y."),
        ("nowhere/x", "there is no run nowhere/x."),
        ("runs", "there is no run runs/runs."),
    ],
)
def test_a_missing_run_is_refused_with_those_here(run: Path, name: str, words: str) -> None:
    assert refusal(name).startswith(words)
    assert "Runs here: runs/x." in refusal(name)


def test_a_run_is_not_suggested_in_place_of_itself(run: Path) -> None:
    assert "Did you mean x?" not in refusal("./x")  # it was meant: what helps is runs/x


def test_where_there_are_no_runs_the_way_to_make_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("x") == "there is no run runs/x. `overnight train PRESET` makes one."


OTHERS = {
    "hf:gpt2": "hf:gpt2 is not in the cache, and the hub cannot be reached",
    "hf:some/path": "hf:some/path is not in the cache",
    "hf:./nowhere/deep": "no folder of that name, and no repository",
    "llmc:model.bin": "cannot read model.bin: No such file",
    "nanogpt:ckpt.pt": "there is no file ckpt.pt",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_peoples_weights_that_are_not_there_are_refused_clearly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert OTHERS[name] in refusal(name)


def break_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def test_without_a_step_the_newest_sound_checkpoint_is_meant(run: Path) -> None:
    for step, newest in ((4, 3), (3, 2)):
        break_weights(run / "checkpoints" / f"step_{step:08d}")
        assert resolve.load("x", CPU).step == newest
        assert refusal(f"x@{step}").startswith(f"the checkpoint x@{step} is damaged: model.safetensors")


def test_a_run_without_a_sound_checkpoint_is_refused(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        break_weights(checkpoint)
    assert refusal("x").startswith("the run runs/x has no complete checkpoint yet: train it first.")
    shutil.rmtree(run / "checkpoints")
    assert refusal("x") == "the run runs/x has no complete checkpoint yet: train it first."
    assert refusal("x@1") == "runs/x has no checkpoint of step 1. It has: none."


def rewrite(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json"),
        (rewrite("tokenizer.json", "[]"), "tokenizer.json"),
        (rewrite("tokenizer.json", '{"kind": "char"}'), "tokenizer.json"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file(
    run: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(run)
    assert words in refusal("x")


@pytest.mark.parametrize("content", ["", "{", "{}", None])
def test_the_checkpoints_copy_of_a_damaged_config_is_used_and_that_is_said(
    run: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resolve.load("x", CPU)
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_text(content)
    assert resolve.load("x", CPU).config == before.config
    said = capsys.readouterr().err
    assert "config.json" in said
    assert said.endswith("The copy in step_00000004 is used.\n")


def test_a_config_of_another_model_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four heads would fit the same tensors, and compute something else."""
    edit(run / "config.json", lambda config: config["model"].update(n_head=4))
    assert resolve.load("x", CPU).model.config.n_head == 2
    assert "describes another model than the checkpoint" in capsys.readouterr().err


def test_of_earlier_versions_a_config_of_another_model_is_refused_with_the_tensor(run: Path) -> None:
    for path in run.glob("checkpoints/*/state.json"):
        edit(path, lambda state: state.pop("config"))
    edit(run / "config.json", lambda config: config["model"].update(block_size=8))
    assert "wpe.weight has shape [16, 16], not [8, 16]" in refusal("x")


def test_another_tokenizer_is_refused_with_the_remedy(run: Path) -> None:
    described = json.loads((run / "tokenizer.json").read_text())
    described["characters"] = described["characters"][:-1] + "\U0001f319"
    (run / "tokenizer.json").write_text(json.dumps(described))
    said = refusal("x")
    assert "is not the tokenizer that step_00000004 was trained with" in said
    assert "resume the training" in said


def test_a_fall_back_to_an_older_checkpoint_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints/step_00000004/model.safetensors").write_bytes(b"garbage")
    assert resolve.load("x", CPU).step == 3
    said = capsys.readouterr().err
    assert "step_00000004: model.safetensors is not the file that was saved" in said
    assert said.endswith("The checkpoint of step 3 is used.\n")


def test_a_config_says_its_preset_and_what_was_auto(run: Path) -> None:
    config, extra = runs.read_config(run)
    assert extra["preset"] == "shakespeare-cpu"
    assert extra["auto"].keys() >= {"micro_batch", "precision", "compile", "model.vocab_size"}
    assert (config.steps, config.micro_batch, config.device) == (4, 4, "cpu")
