"""`overnight prepare`: what it prints, the first time and once the data is prepared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


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
