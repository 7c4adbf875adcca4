"""The command line from outside: help, presets, exit codes, and what is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
