"""`overnight doctor`: all is well here, and what is not is said with exit code 1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from overnight import doctor


def test_a_sound_machine_passes(cli: Callable[..., Any]) -> None:
    found = cli("doctor", "--device", "cpu")
    lines = {line.split()[0]: line for line in found.out.splitlines()}
    assert found.code == 0
    parts = ["python", "device", "precision", "compile", "memory", "disk", "tokenizer", "learning"]
    assert list(lines) == parts
    assert "auto is fp32" in lines["precision"]
    assert lines["learning"].split()[1] == lines["tokenizer"].split()[1] == "ok"


@pytest.mark.parametrize("broken", ["learning", "tokenizer"])
def test_what_is_broken_is_said(
    broken: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "learning":
        monkeypatch.setattr(doctor, "train_step", lambda *_: (torch.tensor(4.16), torch.tensor(0.0)))
    else:
        monkeypatch.setattr(doctor, "HELLO", ("Hello", [1]))
    found = cli("doctor", "--device", "cpu")
    assert found.code == 1
    assert [line.split()[0] for line in found.out.splitlines() if " FAIL " in line] == [broken]


def test_the_doctor_finds_this_machine_well(cli: Callable[..., Any]) -> None:
    found = cli("doctor", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert [line.split()[0] for line in found.out.splitlines()] == (
        "python device precision compile memory disk tokenizer learning".split()
    )
    assert "FAIL" not in found.out
