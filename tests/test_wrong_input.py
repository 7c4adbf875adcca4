"""Wrong input is refused in one to three lines with exit code 2, and leaves nothing behind."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit

from overnight import cli as command

Cli = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def yard(run: Path, tmp_path: Path, data_folder: Path, foreign_data: Path) -> Path:
    """The current folder: good data and a good run, and all that can be wrong with both."""
    del run  # at runs/x
    shutil.copytree(data_folder, "data")
    shutil.copytree(foreign_data, "foreign")
    for name in ("cut", "flipped", "no-tokenizer", "other-tokenizer", "no-json", "outside", "bad-magic"):
        shutil.copytree(data_folder, name)
    shard = Path("cut/train_000001.bin")
    shard.write_bytes(shard.read_bytes()[:-5])
    shard = Path("flipped/train_000001.bin")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    shard = Path("bad-magic/val_000000.bin")
    shard.write_bytes(b"\x00" + shard.read_bytes()[1:])
    Path("no-tokenizer/tokenizer.json").unlink()
    shutil.copy(foreign_data / "tokenizer.json", "other-tokenizer/tokenizer.json")
    Path("no-json/manifest.json").write_text("{")
    manifest = Path("outside/manifest.json")
    edit(manifest, lambda found: found["shards"][0].update(file="../data/train_000001.bin"))
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/todo.txt").write_text("buy milk")
    Path("latin.txt").write_bytes(b"caf\xe9 " * 100)
    Path("text.txt").write_text("the night is long " * 100)
    Path("picture.png").write_bytes(b"\x89PNG")
    Path("short.txt").write_text("a")
    Path("bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    Path("runs/fresh").mkdir()
    for name in ("config.json", "tokenizer.json", "environment.json"):
        shutil.copy(f"runs/x/{name}", f"runs/fresh/{name}")
    shutil.copytree("runs/fresh", "runs/broken")
    Path("runs/broken/config.json").write_text("{")
    return tmp_path


GO = (
    "train shakespeare-cpu --data data --run new --device cpu --steps 4 --batch-tokens 64 "
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16"
)
PREPARE = "prepare text:text.txt --tokenizer char --out new"

WRONG = {
    "": "VERB",
    "traim shakespeare": "Did you mean train?",
    "frobnicate": f"The verbs are {', '.join(command.VERBS)}.",
    "--verbose": "--verbose",
    "train": "which preset?",
    "train --steps 3": "which preset?",
    "train no-such-preset": "The presets are quickstart, gpt2-quickstart",
    "train gpt2-124": "Did you mean gpt2-124m?",
    f"{GO} --stepz 3": "unknown option --stepz. Did you mean --steps?",
    f"{GO} --model.n-heads 2": "Did you mean --model.n-head?",
    f"{GO} --steps x": "--steps",
    f"{GO} --steps": "Missing value for argument '--steps'",
    f"{GO} --steps -1": "steps is -1: give 1 or more.",
    f"{GO} --steps 0": "steps is 0: give 1 or more.",
    f"{GO} --model.n-head 3": "model.n-head 3 does not divide model.n-embd 16",
    f"{GO} --batch-tokens 1000": "give 992 or 1008.",
    f"{GO} --micro-batch 3": "give 48 or 96.",
    f"{GO} --micro-batch 0": "micro-batch is 0: give 1 or more.",
    f"{GO} --processes 0": "processes is 0: give 1 or more.",
    f"{GO} --processes 3": "context 16 x processes 3 = 48",
    f"{GO} --device tpu": "--device",
    f"{GO} --precision tf32": "give fp32",
    f"{GO} --optim.lr nan": "optim.lr is nan: give a finite number.",
    f"{GO} --optim.betas 0.9 1.0": "optim.betas are 0.9 and 1.0",
    f"{GO} --model.dropout 1": "model.dropout is 1.0",
    f"{GO} --max-minutes inf": "max-minutes is inf: give a finite number.",
    f"{GO} --keep 0": "keep is 0: give 1 or more.",
    f"{GO} --seed -1": "seed is -1: give 0 or more.",
    f"{GO} --seed {2**64}": "seed",
    f"{GO} --model.vocab-size 10": "model.vocab-size 10 is smaller than the data's vocabulary of 20",
    f"{GO} --model.block-size 50000 --batch-tokens 50000": "prepare more text",
    f"{GO} --sample.prompt Z": "sample.prompt: the character 'Z' (U+005A)",
    f"{GO} --sample.prompt \udcff": "sample.prompt",
    f"{GO} --data nowhere": "Make some: overnight prepare SOURCE --out nowhere",
    f"{GO} --data text.txt": "no prepared data in text.txt",
    f"{GO} --data cut": "cut/train_000001.bin is damaged",
    f"{GO} --data flipped --verify": "flipped/train_000001.bin has changed",
    f"{GO} --data bad-magic": "bad-magic/val_000000.bin is no shard",
    f"{GO} --data no-json": "no-json/manifest.json is damaged",
    f"{GO} --data outside": "leads out of the folder",
    f"{GO} --data no-tokenizer": "no-tokenizer/tokenizer.json",
    f"{GO} --data other-tokenizer": "other-tokenizer/tokenizer.json is not the one of the manifest",
    f"{GO} --run notes/": "notes exists and is not a run",
    f"{GO} --run text.txt/x": "text.txt",
    f"{GO} --run ./text.txt": "text.txt exists and is not a run",
    f"{GO} --run .": "is not a run",
    f"{GO} --run broken": "runs/broken/config.json is damaged",
    f"{GO} --init-from nowhere": "there is no run runs/nowhere",
    f"{GO} --init-from hf:gpt2": "hf:gpt2 is not in the cache",
    f"{GO} --init-from x --model.n-embd 32": "16",
    f"{GO} --init-from x --data foreign": "tokenizer",
    "eval": "runs/NAME",
    "eval nowhere": "there is no run runs/nowhere. Runs here: runs/broken, runs/fresh, runs/x.",
    "eval notes/": "config",
    "eval runs/broken": "runs/broken/config.json is damaged",
    "eval runs/fresh": "has no complete checkpoint yet: train it first.",
    "eval runs/x@999": "runs/x has no checkpoint of step 999. It has: 1, 2, 3, 4.",
    "eval llmc:text.txt --data data": "no model of llm.c",
    "eval nanogpt:text.txt --data data": "text.txt is damaged or no checkpoint of torch",
    "eval hf:empty --data data": "empty/config.json",
    "eval x --data nowhere": "no prepared data in nowhere",
    "eval x --data foreign": "foreign was made with another tokenizer",
    "eval x --data data --context 17": "--context 17 is longer than the model's 16",
    "eval x --data data --context -1": "context is -1: give 0 or more.",
    "eval x --data data --val-tokens -5": "val-tokens is -5: give 0 or more.",
    "eval x --data data --tasks ,": "--tasks ',' names none. The tasks are val, hellaswag",
    "eval x --data data --tasks hellaswagg": "unknown task 'hellaswagg'. Did you mean hellaswag?",
    "eval x y": "y",
    "sample": "runs/NAME",
    "sample nowhere --prompt hi": "there is no run runs/nowhere",
    "sample runs/fresh": "has no complete checkpoint yet: train it first.",
    "sample x --temperature -1": "temperature is -1.0: give 0 or more.",
    "sample x --temperature nan": "temperature is nan: give a finite number.",
    "sample x --top-p 0": "top-p is 0.0: give more than 0, at most 1.",
    "sample x --top-p 1.5": "top-p is 1.5: give more than 0, at most 1.",
    "sample x --top-k -1": "top-k is -1: give 0 or more.",
    "sample x --length 0": "length is 0: give 1 or more.",
    "sample x --samples 0": "samples is 0: give 1 or more.",
    "sample x --prompt Zoo": "the character 'Z' (U+005A) is not one of the",
    "sample x --prompt \udcff": "not valid Unicode",
    f"sample x --seed {2**64}": "seed",
    "prepare": "stdlib, shakespeare, text:PATH",
    "prepare stdlb --out new": "Did you mean stdlib?",
    "prepare text.txt --out new": "say text:text.txt",
    "prepare text:nowhere --out new": "there is no file or folder nowhere",
    "prepare text:empty --out new": "empty has no text in it",
    "prepare text:picture.png --out new": "cannot read picture.png",
    "prepare text:latin.txt --tokenizer char --out new": "latin.txt is not UTF-8 text (at byte 3)",
    "prepare text:short.txt --tokenizer char --out new": "too small to split",
    "prepare text:bad.jsonl --tokenizer char --out new": "bad.jsonl, line 2",
    "prepare stdlib --tokenizer bpe:1 --out new": "give bpe:N with N from 257",
    f"{PREPARE} --tokenizer bpe:x": "give bpe:N with N from 257",
    f"{PREPARE} --tokenizer gpt3": "Did you mean gpt2?",
    f"{PREPARE} --tokenizer text.txt": "the tokenizer text.txt is damaged: it is not JSON",
    f"{PREPARE} --workers -1": "workers is -1: give 0 or more.",
    f"{PREPARE} --workers x": "--workers",
    f"{PREPARE} --shard-tokens 0": "--shard-tokens is 0: give 1 to",
    f"{PREPARE} --out notes": "notes exists and is no data folder",
    f"{PREPARE} --out data": "data holds other data",
    f"{PREPARE} --out text.txt/x": "text.txt",
    "doctor --device tpu": "--device",
    "doctor everything": "everything",
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"), WRONG.items(), ids=[ascii(line.replace(GO, "GO")) for line in WRONG]
)
def test_wrong_input_is_refused_in_few_lines_and_leaves_nothing(
    yard: Path, cli: Cli, tree: Tree, line: str, words: str
) -> None:
    before = tree(yard)
    refused = cli(*shlex.split(line))
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.err
    assert 1 <= len(refused.err.strip().split("\n")) <= 3
    assert "Traceback" not in refused.err
    assert tree(yard) == before


def test_a_device_that_is_not_there_is_refused(yard: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for line in (
        "eval x --data data --device cuda",
        "sample x --device cuda",
        "doctor --device cuda",
        GO + " --device cuda",
    ):
        refused = cli(*shlex.split(line))
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith(
            "overnight: there is no cuda device here: give --device auto, or one of "
        )
    assert not Path("runs/new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "report LONG",
        "inspect LONG",
        "eval runs/x --data LONG",
        "sample hf:LONG",
        "sample nanogpt:LONG",
        "train shakespeare-cpu --run LONG",
        "plan shakespeare-cpu --data LONG",
        "prepare stdlib --tokenizer LONG",
    ],
)
def test_a_path_that_is_too_long_is_refused_in_a_line(run: Path, cli: Cli, arguments: str) -> None:
    outcome = cli(*arguments.replace("LONG", 300 * "x").split())
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert "ile name too long" in outcome.err
