"""`sample -i`: what is typed is gone on from, settings obey, mistakes are told and end nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Outcome

from overnight.conversation import Settings, converse
from overnight.decode import Sampling
from overnight.errors import UserError
from overnight.generate import texts
from overnight.resolve import load


def talk(run: Path, *typed: str) -> str:
    """All that is shown after the help, for lines typed one after another."""
    import torch

    loaded = load(str(run), torch.device("cpu"))
    assert loaded.tokenizer
    said: list[str] = []
    converse(loaded.model, loaded.tokenizer, Settings(Sampling(0), 12, 7), iter(typed), said.append)
    return "".join(said[1:])


def written(run: Path, prompt: str, length: int = 12, sampling: Sampling | None = None) -> str:
    import torch

    loaded = load(str(run), torch.device("cpu"))
    assert loaded.tokenizer
    return texts(loaded.model, loaded.tokenizer, [prompt], length, sampling or Sampling(0), 7)[0]


def test_a_line_is_gone_on_from_and_enter_alone_writes_another(run: Path) -> None:
    once = f"the{written(run, 'the')}\n"
    assert talk(run, "the") == once
    assert talk(run, "the", "") == 2 * once  # greedy: the same again
    assert talk(run, "the\\nnight") == f"the\nnight{written(run, chr(10).join(['the', 'night']))}\n"


def test_settings_change_how_it_writes(run: Path) -> None:
    shown = talk(run, ":length 3", ":temperature 1", ":top-k 2", ":seed 7", "the")
    text = written(run, "the", 3, Sampling(1.0, top_k=2))
    assert shown == f"length 3\ntemperature 1\ntop-k 2\nseed 7\nthe{text}\n"


def test_every_text_has_a_seed_of_its_own_and_they_come_again(run: Path) -> None:
    asked = [":temperature 1", ":length 40", "the", "", ""]
    first = talk(run, *asked)
    assert talk(run, *asked) == first
    assert len(set(first.split("the")[1:])) > 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (":temprature 1", "there is no setting ':temprature'. Did you mean temperature?"),
        (":top-k many", ":top-k takes a number, not 'many'."),
        (":top-p 0", ":top-p 0 is out of range."),
        (":top-p 1.5", ":top-p 1.5 is out of range."),
        (":temperature nan", ":temperature nan is out of range."),
        (":temperature inf", ":temperature inf is out of range."),
        (":length 0", ":length 0 is out of range."),
        (f":length {10**30}", f":length {10**30} is out of range."),
        (f":top-k {10**30}", f":top-k {10**30} is out of range."),
        (":temperature 1e300", ":temperature 1e300 is out of range."),
        (":seed -1", ":seed -1 is out of range."),
        ("ü", "the character 'ü'"),
    ],
)
def test_mistakes_are_told_and_end_nothing(run: Path, line: str, said: str) -> None:
    shown = talk(run, line, "the")
    assert said in shown
    assert shown.endswith(f"the{written(run, 'the')}\n")


def test_quit_ends_it_and_help_helps(run: Path) -> None:
    assert ":top-p X" in talk(run, ":help", ":quit", "the")
    assert "the" not in talk(run, ":quit", "the")


def test_settings_refuse_without_changing() -> None:
    settings = Settings(Sampling(), 10, 1)
    with pytest.raises(UserError):
        settings.change(":length x")
    assert settings == Settings(Sampling(), 10, 1)


def test_prompts_are_typed_and_not_given(cli: Callable[..., Outcome], run: Path) -> None:
    outcome = cli("sample", "x", "-i", "--prompt", "the")
    assert outcome.code == 2
    assert "--interactive asks for prompts itself" in outcome.err


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal_ctrl_c_ends_a_text_and_ctrl_d_the_conversation(run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "overnight",
        "sample",
        str(run),
        "-i",
        "--temperature",
        "0",
        "--length",
        "1000000",
    ]
    # A shell that runs the tests in the background may have SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def wait_for(ready: Callable[[], bool], sign: signal.Signals | None = None) -> None:
        """Read on; with a signal, sent again each second, as a person would."""
        nonlocal seen
        end, again = time.monotonic() + 60, 0.0
        while not ready():
            now = time.monotonic()
            assert now < end, seen[-500:]
            if sign and now > again:
                process.send_signal(sign)
                again = now + 1
            seen += os.read(ours, 65536)

    try:
        wait_for(lambda: b"> " in seen)
        os.write(ours, b"the\n")
        wait_for(lambda: len(seen) > 5000)
        wait_for(lambda: seen.endswith(b"> "), signal.SIGINT)
        assert process.poll() is None
        os.write(ours, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
