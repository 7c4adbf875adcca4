"""Commands to paste: whatever a stranger's run folder holds, a shell runs the commands meant and no other."""

import contextlib
import html
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.conftest import Outcome
from tests.report.made import Night, fineweb, lecture, make_run

from overnight.data.manifest import Data
from overnight.report import again, facts
from overnight.report.parts import sections
from overnight.report.words import markdown
from overnight.visible import visible

DATA = "data/fineweb-edu"
TEXTS = ("run", "data", "init_from", "hellaswag_file", "prompt")
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

EVIL = [
    "\ntouch owned\n", "$(touch owned)", "`touch owned`", "'; touch owned; '", '"; touch owned; "',
    "\x1b[2Jx\x07", "\u202eevil\u2066", "--out=owned", "-rf", "\\",
    "'\\''", "! ~ * ? [a] {a,b} #", "a\tb\r\nc",
    "\u2028touch owned", "\udcff", "\ud800", "\0", "", " ", "  two  spaces ", "é😀", "```\ntouch owned\n```",
    "<script>alert(1)</script>&amp;", "=ls", "~root", "x" * 3_000, "touch owned #", "% job", "|&;<>()",
]  # fmt: skip
text = st.one_of(st.sampled_from(EVIL), st.lists(st.sampled_from(EVIL), max_size=3).map("".join), st.text())
values = st.recursive(
    st.one_of(text, st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(text, inner, max_size=2)),
    max_leaves=4,
)


class Shell:
    """A folder in which `git` and `overnight` only write down how they were called, and nothing else is."""

    def __init__(self, place: Path):
        self.bin, self.work, self.log = place / "bin", place / "work", place / "log"
        self.bin.mkdir()
        self.work.mkdir()
        for name in ("git", "overnight"):
            stub = self.bin / name
            stub.write_text(
                f'#!{BASH}\nprintf \'%s\\0\' {name} "$@" >> "$LOG"\nprintf \'\\n\\0\' >> "$LOG"\n'
            )
            stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
        (self.bin / "touch").symlink_to(shutil.which("touch") or "touch")

    def run(self, script: str) -> list[list[str]]:
        """The words of each command that bash ran for `script`, which printed nothing and made nothing."""
        self.log.unlink(missing_ok=True)
        assert BASH
        done = subprocess.run(
            [BASH], input=os.fsencode(script), cwd=self.work, capture_output=True, check=False,
            env={"PATH": str(self.bin), "LOG": str(self.log), "LC_ALL": "C.UTF-8", "HOME": str(self.work)},
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert list(self.work.iterdir()) == []
        words = self.log.read_bytes().split(b"\0")[:-1] if self.log.exists() else []
        calls: list[list[str]] = [[]]
        for word in words:
            if word == b"\n":
                calls.append([])
            else:
                calls[-1].append(os.fsdecode(word))
        return calls[:-1]


def evil_run(folder: Path, told: dict[str, Any], details: list[Any], data: Path | None) -> facts.Run:
    """A run whose files hold what a stranger likes."""
    night = Night()
    night.event(0, "start")
    night.train(1)
    for one in details:
        night.event(1, "resume", changes=one)
    shutil.rmtree(folder, ignore_errors=True)
    config = lecture(folder)
    make_run(folder, config, night)
    described = json.loads((folder / "config.json").read_text())
    described |= {name: told[name] for name in ("run", "data", "init_from", "hellaswag_file", "track")}
    described["sample"]["prompt"] = told["prompt"]
    described["optim"]["betas"] = [0.5, 0.75]
    described["deterministic"] = True
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "environment.json").write_text(json.dumps({"git": told["git"], "gpus": [told["prompt"]]}))
    run = facts.open_run(str(folder))
    if data:  # at whatever place the config names
        run.data = Data(data)
        run.data.manifest.request.clear()
        run.data.manifest.request.update(
            {name: told[name] for name in ("source", "tokenizer", "shard_tokens")}
        )
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Shell]]:
    home = tmp_path_factory.mktemp("home")
    fineweb(home / DATA)
    shell = tmp_path_factory.mktemp("shell")
    with contextlib.chdir(home):
        yield home, Shell(shell)


def fences(document: str) -> list[str]:
    """What Markdown shows as code, by CommonMark's rules for fences."""
    found, inside = [], ""
    for line in document.splitlines():
        if inside and re.fullmatch(rf" {{0,3}}`{{{len(inside)},}} *", line):
            inside = ""
        elif inside:
            found.append(line)
        elif opened := re.match(r" {0,3}(```+)[^`]*$", line):
            inside = opened[1]
    return found


@examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    told=st.fixed_dictionaries(
        {
            **dict.fromkeys(TEXTS, text),
            "track": st.just(""),
            "git": st.one_of(
                values, st.sampled_from(["c0ffee1", "C0FFEE1", "c0ffee1-dirty", "--all", "a" * 65])
            ),
            "source": st.one_of(values, text.map("text:{}".format)),
            "tokenizer": st.one_of(values, st.sampled_from(["gpt2", "bpe:300"])),
            "shard_tokens": values,
        }
    ),
    details=st.lists(st.one_of(values, st.dictionaries(text, values, max_size=3)), max_size=2),
)
@example(
    told=dict.fromkeys((*TEXTS, "source"), "\ntouch owned\n")
    | {
        "track": "",
        "git": "c0ffee1-dirty\ntouch owned",
        "tokenizer": "gpt2",
        "shard_tokens": "1; touch owned",
    },
    details=[{"\ntouch owned\n": ["\ntouch owned\n"]}],
)
def test_only_the_commands_that_are_meant_run(
    place: tuple[Path, Shell], told: dict[str, Any], details: list[Any]
) -> None:
    home, shell = place
    run = evil_run(home / "runs" / "x", told, details, home / DATA)
    found = again.lines(run)
    train, prepare = again.train_words(run), again.prepare_words(run)
    meant = [words for words in (prepare, train) if words and again.can_be_typed(words)]
    commit = re.fullmatch(r"([0-9a-f]{7,64})(-dirty)?", told["git"]) if isinstance(told["git"], str) else None
    meant = ([["git", "checkout", commit[1]]] if commit else []) + meant
    report = ["overnight", "report", again.as_argument(again.runs.run_path(again.again_name(told["run"])))]
    meant += [report] if again.can_be_typed(report) else []

    assert all(visible(line) == line and len(line.splitlines()) == 1 for line in found)
    assert shell.run("\n".join(found)) == meant

    # zsh, as people type into it, takes a comment for a command: its words are words all the same.
    comments = [line for line in found if line.startswith("#")]
    assert len(shell.run("\n".join(f"overnight {line[1:]}" for line in comments))) == len(comments)

    # No word is an option that was not meant, each has the value that the run's folder has.
    options = {word.split("=")[0] for words in meant for word in words if word.startswith("-")}
    assert options <= {
        "--run", "--data", "--init-from", "--hellaswag-file", "--sample.prompt", "--optim.betas",
        "--tokenizer",
        "--out", "--shard-tokens", "--deterministic", "--processes", "--device", "--micro-batch", "--compile",
        "--precision", "--model.vocab-size", "--hellaswag-every",
    }  # fmt: skip

    shown = sections([run])["again"][1].removeprefix("<pre>").removesuffix("</pre>")
    assert "<" not in shown
    assert html.unescape(shown) == "\n".join(found)
    code = fences(markdown([run]))
    assert shell.run("\n".join(code)) == ([train] if again.can_be_typed(train) else [])


def test_its_words_are_read_back_by_the_command_line(
    place: tuple[Path, Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dash, quotes and lines in every text: the config that they make is the run's."""
    from overnight.arguments import parse
    from overnight.config import Config
    from overnight.presets import PRESETS

    home, _ = place
    odd = dict.fromkeys(TEXTS, "--x '\n\t\"$(y)")
    run = evil_run(home / "runs" / "x", odd | {"track": "", "git": None} | REQUEST, [], home / DATA)
    words = again.train_words(run)
    assert run.config
    config = parse(Config, "overnight train", words[3:], default=PRESETS[words[2]]())
    assert (config.sample.prompt, config.optim.betas) == (run.config.sample.prompt, (0.5, 0.75))
    for name in ("data", "init_from", "hellaswag_file", "deterministic"):
        assert getattr(config, name) == getattr(run.config, name)


REQUEST = {"source": "fineweb-edu:sample-10BT", "tokenizer": "gpt2", "shard_tokens": 100_000_000}


def test_what_no_command_line_can_hold_is_left_out_with_a_comment(place: tuple[Path, Shell]) -> None:
    home, shell = place
    plain = dict.fromkeys((*TEXTS, "track"), "")
    for prompt in ("a\0b", "\ud800", "x" * 1_000_000):
        told = plain | {"run": "r", "git": "a" * 40, "prompt": prompt} | REQUEST | {"source": "-x"}
        run = evil_run(home / "runs" / "x", told, [], None)
        lines = again.lines(run)
        left_out = "trains it is left out: no command line can hold what the run or its data say."
        assert lines[1] == f"# The command that {left_out}"
        assert sum(map(len, lines)) < 1000
        assert again.command(run) is None
        assert shell.run("\n".join(lines)) == [
            ["git", "checkout", "a" * 40], ["overnight", "report", "runs/r-again"],
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["-rf", "--json", "a b", "x\ny", "$(touch owned)", "'"])
def test_a_run_folder_whose_name_is_an_attack_is_only_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """Its checkpoint is named so that it can be pasted: `RUN@STEP`."""
    monkeypatch.chdir(tmp_path)
    night = Night()
    night.event(0, "start")
    for step, loss in ((4, 3.0), (6, 2.5), (8, 2.7)):
        night.train(step)
        night.validate(step, loss)
    run = make_run(tmp_path / name, lecture(tmp_path / name), night)
    (run / "checkpoints" / "step_00000006").mkdir(parents=True)
    outcome: Outcome = cli("report", f"./{name}", "--terminal")
    assert outcome.code == 0
    [line] = [line for line in outcome.out.splitlines() if "Its checkpoint is there: " in line]
    hint = line.partition("Its checkpoint is there: ")[2].removesuffix(".")
    (tmp_path / "shell").mkdir()
    [[_, argument]] = Shell(tmp_path / "shell").run(f"overnight {hint}")
    assert argument == (f"./{name}@6" if name.startswith("-") else f"{name}@6")


@pytest.mark.parametrize(
    ("source", "word"),
    [("stdlib of Python 3.12.4", "stdlib"), ("text:Zen of Python 3/a.txt", "text:Zen of Python 3/a.txt")],
)
def test_only_the_standard_library_loses_its_version(source: str, word: str, place: tuple) -> None:
    home, _ = place
    make_run(home / "versions", lecture(home / "versions"), Night())
    run = facts.open_run(str(home / "versions"))
    run.data = Data(home / DATA)
    run.data.manifest.request["source"] = source
    assert again.prepare_words(run)[:3] == ["overnight", "prepare", word]
