"""docs/lecture.md shows what it says: its commands are run, and the code that it names is there.

Below a command stands what it prints, in a ```text block: `...` is anything, as a line of its own any lines;
numbers may be off by a quarter (another Python has another library to learn from); all else is literal.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from overnight.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
CHAPTERS = dict(re.findall(r"^#+ (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
CLOSE = 0.25
NUMBER = r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(chapter: str, kind: str) -> list[str]:
    """The contents of a chapter's blocks of one kind."""
    return [content for name, content in BLOCK.findall(CHAPTERS[chapter]) if name == kind]


def pattern(quote: str) -> re.Pattern[str]:
    """What the whole output has to match; each number of the quote is a group."""

    def literal(text: str) -> str:
        return re.sub(r"(\\ )+", " +", re.escape(text))

    def line(text: str) -> str:
        if text == "...":
            return r"(?:.*\n)*?"
        parts = re.split(rf"({NUMBER}|\.\.\.)", text)  # literal, number or dots, literal, ...
        found = [".*" if part == "..." else f"({NUMBER})" for part in parts[1::2]]
        return "".join(literal(a) + b for a, b in zip(parts[::2], [*found, ""], strict=True)) + r"\n"

    return re.compile("".join(map(line, quote.splitlines())))


def difference(quote: str, output: str) -> str:
    """What an output lacks of its quote, '' if nothing."""
    match = pattern(quote).fullmatch(output)
    if match is None:
        lines = quote.splitlines()
        missing = (line for n, line in enumerate(lines, 1) if not pattern("\n".join(lines[:n])).match(output))
        return f"there is no {next(missing, 'end')!r}"
    numbers = [text for text in re.findall(rf"{NUMBER}|\.\.\.", quote) if text != "..."]
    for said, printed in zip(numbers, match.groups(), strict=True):
        a, b = (float(number.replace(",", "")) for number in (said, printed))
        if abs(a - b) > CLOSE * abs(a):
            return f"{printed} is not near {said}"
    return ""


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="commands of a Unix shell")
def test_every_command_shows_what_the_text_below_it_says(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for chapter in CHAPTERS:
        for command, quote in zip(blocks(chapter, "sh"), blocks(chapter, "text"), strict=True):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=environment,
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            wrong = f"exit code {done.returncode}" if done.returncode else difference(quote, done.stdout)
            if wrong:
                pytest.fail(f"{chapter}: {wrong}\n{command}\n{done.stdout}\n{done.stderr}\nquoted:\n{quote}")


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        ("loss 7.6 at 2,048\na\nb\nthe same: True\n", ""),
        ("loss 7.1 at 2,100\nthe same: True\n", ""),
        ("loss 70.6 at 2,048\nthe same: True\n", "70.6 is not near 7.6"),
        ("loss 7.6 at 20\nthe same: True\n", "20 is not near 2,048"),
        ("loss 7.6 at 2,048\nthe same: False\n", "there is no 'the same: ...ue'"),
        ("loss 7.6 at 2,048\n", "there is no 'the same: ...ue'"),
        ("loss nan at 2,048\nthe same: True\n", "there is no 'loss 7.6 at 2,048'"),
        ("loss 7.6 at 2,048\nthe same: True\nmore\n", "there is no 'end'"),
        ("before\nloss 7.6 at 2,048\nthe same: True\n", "there is no 'loss 7.6 at 2,048'"),
    ],
)
def test_an_output_that_differs_is_found(output: str, wrong: str) -> None:
    assert difference("loss 7.6 at 2,048\n...\nthe same: ...ue\n", output) == wrong


def test_each_chapter_has_its_place_in_the_code_and_a_command() -> None:
    """And they come in the order of the lecture."""
    chapters = list(CHAPTERS)[1:]
    marks = [chapter[:4] for chapter in chapters if re.match(r"\d:\d\d ", chapter)]
    assert marks == sorted(set(marks))
    assert (marks[0], marks[-1], len(chapters) - len(marks)) == ("0:00", "3:59", 2)
    for chapter in chapters:
        assert len(blocks(chapter, "sh")) == len(blocks(chapter, "text")) >= 1, chapter
        assert len(places(chapter)) >= 2, chapter  # a file and what is in it


def places(chapter: str) -> list[tuple[Path, str]]:
    """(file, name in it) of all that a chapter's "Where:" names; the name is '' for the file itself."""
    found, file = [], Path()
    for where in re.findall(r"^Where: (.+?)(?=^```|^<!--|\n\n)", CHAPTERS[chapter], re.M | re.S):
        for name in re.findall(r"`(.+?)`", where):
            file = ROOT / name if "/" in name else file
            found.append((file, "" if "/" in name else name))
    return found


@cache
def defined(file: Path) -> set[str]:
    """The functions, classes, `Class.method`s and constants of a file."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_the_code_that_it_names_is_there() -> None:
    for chapter in CHAPTERS:
        for file, name in places(chapter):
            assert file.is_file(), f"{chapter}: {file}"
            assert not name or name in defined(file), f"{chapter}: {name} is not in {file}"


def test_the_files_and_verbs_that_it_names_are_there() -> None:
    quoted = "\n".join(re.findall(r"`([^`\n]+)`", BLOCK.sub("", PAGE)))
    files = re.findall(r"\b(?:src|docs|tests|scripts|benchmarks)/[\w./-]+", quoted)
    assert len(files) > 50
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert set(re.findall(r"^overnight (\w+)", quoted, re.M)) <= set(VERBS)
