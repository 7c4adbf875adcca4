"""The command line from outside: exit codes, help, and wrong input in one to three lines."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit

from overnight import cli as command
from overnight.arguments import option_names
from overnight.config import Config
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.verbs.doctor import Doctor
from overnight.verbs.eval import Eval
from overnight.verbs.export import Export
from overnight.verbs.inspect import Inspect
from overnight.verbs.ladder import Ladder
from overnight.verbs.plan import Plan
from overnight.verbs.prepare import Prepare
from overnight.verbs.report import Report
from overnight.verbs.sample import Sample
from overnight.verbs.serve import Serve
from overnight.verbs.train import find_preset

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


KINDS = {
    "prepare": Prepare,
    "train shakespeare-cpu": Config,
    "eval": Eval,
    "sample": Sample,
    "inspect": Inspect,
    "export": Export,
    "plan quickstart": Plan,
    "ladder": Ladder,
    "report": Report,
    "serve": Serve,
    "doctor": Doctor,
}


@pytest.mark.parametrize("verb", KINDS)
@pytest.mark.parametrize("ask", ["--help", "-h"])
def test_help_names_every_option(cli: Cli, verb: str, ask: str) -> None:
    helped = cli(*verb.split(), ask)
    assert (helped.code, helped.err) == (0, "")
    assert helped.out.startswith(f"usage: overnight {verb} ")
    for option in option_names(KINDS[verb]):
        assert option in helped.out


def test_help_names_the_verbs_and_the_presets(cli: Cli) -> None:
    assert set(command.VERBS) == {verb.split()[0] for verb in KINDS}
    for ask in ("--help", "-h"):
        helped = cli(ask)
        assert (helped.code, helped.err) == (0, "")
        assert all(f"\n  {verb} " in helped.out for verb in command.VERBS)
        presets = cli("train", ask)
        assert (presets.code, presets.err) == (0, "")
        assert all(f"\n  {name} " in presets.out for name in PRESETS)


def test_the_version_is_the_packages(cli: Cli) -> None:
    from overnight import __version__

    assert (cli("--version").code, cli("--version").out) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "preset", "rest"),
    [
        ("shakespeare --steps 3", "shakespeare", "--steps 3"),
        ("--steps 3 shakespeare", "shakespeare", "--steps 3"),
        ("shakespeare-cpu --run shakespeare", "shakespeare-cpu", "--run shakespeare"),
        ("--run shakespeare shakespeare-cpu", "shakespeare-cpu", "--run shakespeare"),
        ("--run=shakespeare shakespeare-cpu", "shakespeare-cpu", "--run=shakespeare"),
        ("--verify shakespeare-cpu", "shakespeare-cpu", "--verify"),
    ],
)
def test_the_preset_is_found_among_options(arguments: str, preset: str, rest: str) -> None:
    assert find_preset(arguments.split(), PRESETS, Config) == (preset, rest.split())


def test_a_runs_name_is_not_taken_for_the_preset() -> None:
    with pytest.raises(UserError, match="which preset"):
        find_preset(["--run", "shakespeare", "--steps", "3"], PRESETS, Config)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120
    )


def test_what_needs_no_torch_imports_none(tmp_path: Path) -> None:
    """Not the package, no help, no wrong option, and not preparing data."""
    (tmp_path / "a.txt").write_text("the night is long " * 100)
    lines = [
        [],
        ["--help"],
        ["--version"],
        ["traim"],
        ["train", "--help"],
        ["train", "quickstart", "--stepz", "3"],
    ]
    lines += [[*verb.split(), "--help"] for verb in KINDS]
    lines += [["train", "quickstart", "--steps", "-1"], "prepare text:a.txt --tokenizer char --out d".split()]
    code = f"""if __name__ == "__main__":
        import sys, overnight
        print("torch" in sys.modules, file=sys.stderr)
        from overnight import cli
        for line in {lines}:
            try:
                cli.run(line)
            except SystemExit:
                pass
            print("torch" in sys.modules, file=sys.stderr)"""
    ended = python(code, tmp_path)
    assert ended.returncode == 0
    found = [line for line in ended.stderr.split("\n") if line in ("True", "False")]
    assert found == ["False"] * (1 + len(lines))
    assert (tmp_path / "d" / "manifest.json").is_file()


@pytest.mark.parametrize("name", [["-m", "overnight"], [str(Path(sys.executable).with_name("overnight"))]])
def test_the_process_ends_with_the_exit_code(tmp_path: Path, name: list[str]) -> None:
    program = [sys.executable, *name] if name[0] == "-m" else name
    for arguments, code in ((["--help"], 0), (["traim"], 2)):
        ended = subprocess.run(
            [*program, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert ended.returncode == code
        assert (ended.stderr == "") == (code == 0)
    assert ended.stderr.startswith("overnight: unknown verb 'traim'. Did you mean train? ")


def test_an_interrupt_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "dispatch", interrupt)
    ended = cli("train")
    assert (ended.code, ended.out, ended.err) == (130, "", "overnight: interrupted\n")


def test_of_many_ranks_each_says_who_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        refused = cli("traim")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert refused.err.startswith(f"overnight (rank {rank}): ")


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


def test_sampling_is_decided_by_its_seed(run: Path, cli: Cli) -> None:
    del run
    ask = [
        "sample",
        "x",
        "--prompt",
        "the night",
        "--length",
        30,
        "--samples",
        2,
        "--device",
        "cpu",
        "--seed",
    ]
    first, again, other = (cli(*ask, seed) for seed in (1, 1, 2))
    assert (first.code, first.err) == (0, "")
    assert first.out == again.out != other.out
    assert first.out.count("the night") == 2


def test_preparing_twice_is_done_once(
    tmp_path: Path, cli: Cli, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the night is long " * 100)
    ask = "prepare text:text.txt --tokenizer char --workers 1".split()
    first = cli(*ask)
    assert first.code == 0
    assert first.out.startswith("data/text: 1 documents, 1.8 kB of text, 1,620 tokens to train on and 181 ")
    before = tree(tmp_path)
    again = cli(*ask)
    assert again.code == 0
    assert again.out == first.out.replace("data/text:", "data/text was ready already:")
    assert tree(tmp_path) == before


def test_the_doctor_finds_this_machine_well(cli: Cli) -> None:
    found = cli("doctor", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert [line.split()[0] for line in found.out.splitlines()] == (
        "python device precision compile memory disk tokenizer learning".split()
    )
    assert "FAIL" not in found.out


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
