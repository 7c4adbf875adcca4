"""`overnight sample`: what a seed decides, what a terminal gets, and what a file does."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import WORDS, Outcome, babble, make_data

from overnight.verbs import sample
from overnight.visible import visible

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\r\x9b"
CODES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_escape_codes_are_shown_on_a_terminal_and_left_alone_in_a_file(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    sample.say(ESCAPE)
    assert capsys.readouterr().out == (visible(ESCAPE) if is_terminal else ESCAPE)


def through_pipe(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("interactive", [False, True])
def test_a_model_that_writes_escape_codes_is_harmless_on_a_terminal(
    interactive: bool, train: Callable[..., Outcome], tmp_path: Path
) -> None:
    import pty

    letters = sorted(set("".join(WORDS)) - set("th"))
    codes = [chr(code) for code in range(1, 0x20) if chr(code) not in "\t\n\r"]
    text = babble(1).translate(dict(zip(map(ord, letters), codes, strict=False)))
    run, data = tmp_path / "run", make_data(tmp_path, text)
    assert train(run, "--data", data).code == 0
    command = [sys.executable, "-m", "overnight", "sample", str(run), "--length", "80"]
    command += ["-i"] if interactive else ["--samples", "5"]
    if not interactive:
        assert CODES.search(through_pipe(command))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen, typed = b"", [b"th\n", b"\n", b"\n", b":quit\n"] if interactive else []
    try:
        while part := os.read(ours, 65_536):
            seen += part
            if typed and seen.endswith(b"> "):
                os.write(ours, typed.pop(0))
    except OSError:  # the other side is closed: all is read
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    assert re.search("[\u2401-\u241f]", seen.decode())
    assert not CODES.search(re.sub(rb"\x1b\[\?2004[hl]", b"", seen))  # readline's own


def test_sampling_is_decided_by_its_seed(run: Path, cli: Callable[..., Outcome]) -> None:
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
