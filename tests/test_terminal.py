"""The terminal: text is shown, never obeyed; numbers read well."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.terminal import Silent, Status, duration, size
from overnight.visible import visible

OVERRIDES = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # Unicode's bidirectional classes
MARKS = "\u061c\u200e\u200f\u2028\u2029"  # more direction marks; separators of lines and paragraphs
WITHOUT_WIDTH = "\xad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff"


def is_command(character: str) -> bool:
    control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    unseen = character in WITHOUT_WIDTH or 0xE0000 <= ord(character) < 0xE0080
    return control or unseen or unicodedata.bidirectional(character) in OVERRIDES or character in MARKS


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf"])))
def test_no_command_reaches_the_terminal_and_all_else_does(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        assert not is_command(after)
        assert after == before or is_command(before)


def test_every_command_character_is_replaced() -> None:
    commands = [chr(code) for code in range(0x110000) if is_command(chr(code))]
    # C0, DEL and C1 but newline and tab; the overrides; the marks; without width; tags
    assert len(commands) == 65 - 2 + 9 + 5 + 9 + 128
    assert not set(visible("".join(commands))) & set(commands)


def test_by_hand() -> None:
    assert visible("a\x1b[31mb\r\n\tc\x7f\x9b\u202e") == "a␛[31mb␍\n\tc␡\ufffd\ufffd"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (0, "0 s"), (59.4, "59 s"), (59.5, "1 min 00 s"), (200, "3 min 20 s"), (3599,
        "59 min 59 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (100 * 3600, "100 h 00 min"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_115_394, "1.1 MB"), (2e9, "2.0 GB"), (5e12, "5.0 TB")],
)
def test_sizes_read_well(count: float, text: str) -> None:
    assert size(count) == text


def test_a_line_that_nobody_sees_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    status = Status(plain_every=1e9)
    status.update(lambda: pytest.fail("made though it is too early"))
    Silent().update(lambda: pytest.fail("made though nobody looks"))
    Silent().say("hush")
    status.say("this stays")
    assert capsys.readouterr() == ("this stays\n", "")


def test_progress_in_a_log_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    status = Status(plain_every=0)
    status._last = 0  # as if the last line were long ago
    status.update(lambda: "step 1")
    assert capsys.readouterr().err == "step 1\n"
