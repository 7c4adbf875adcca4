"""Text from outside is shown, never obeyed: by a terminal, a shell, or an eye."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.errors import UserError
from overnight.terminal import complain, say
from overnight.visible import one_line, shell_line, shell_word, visible

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_control_characters_become_pictures() -> None:
    assert visible("a\x1b[2Jb\x7f\x9bc\u202ed\u2066e\u200ff\u2028g") == (
        "a\u241b[2Jb\u2421\ufffdc\ufffdd\ufffde\ufffdf\ufffdg"
    )
    assert visible("a\u200bb\ufeffc\xadd\U000e0041e") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert visible("👩\u200d🚀") == "👩\u200d🚀"
    assert visible("tabs\tand\nlines, ä and 🌙") == "tabs\tand\nlines, ä and 🌙"
    assert one_line("a\n\tb \r\n c") == "a b ␍ c"


def test_no_line_of_ours_holds_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"out {ESCAPE}")
    complain(f"err {ESCAPE}")
    found = capsys.readouterr()
    assert "\x1b" not in found.out + found.err
    error = UserError(f"cannot read {ESCAPE}\n{ESCAPE}: the second line\nthird", ESCAPE, "x", "y")
    assert "\x1b" not in str(error)
    assert len(str(error).splitlines()) == 3


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")))
def test_a_shell_reads_a_word_back_and_sees_one_line(word: str) -> None:
    quoted = shell_word(word)
    assert len(quoted.splitlines()) <= 1
    assert visible(quoted) == quoted
    shown = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert shown.stdout.decode() == word


def test_bytes_that_are_no_unicode_and_whole_lines() -> None:
    name = b"a\xff b".decode("utf-8", "surrogateescape")
    shown = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True)
    assert shown.stdout == b"a\xff b"
    assert shell_line("overnight", "sample", "runs/x; rm -rf ~", 3) == "overnight sample 'runs/x; rm -rf ~' 3"


@pytest.mark.parametrize(
    "word", ["\n'; touch owned #", "\n\\'; touch owned #", "\\", "\\'; touch owned #", "'\\"]
)
def test_no_other_shell_finds_the_end_of_a_quote_early(word: str, tmp_path: Path) -> None:
    quoted = shell_word(word)
    assert quoted.startswith("$'")
    assert "'" not in quoted[2:-1]  # dash reads $ and a '...', in which a backslash is only that
    subprocess.run(["sh", "-c", f"printf %s {quoted}"], cwd=tmp_path, capture_output=True, check=True)
    assert not list(tmp_path.iterdir())
    shown = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert shown.stdout.decode() == word
