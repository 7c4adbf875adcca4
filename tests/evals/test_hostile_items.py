"""Files of benchmarks that a stranger made: read a line at a time, in linear time."""

import random
import re
from pathlib import Path

import pytest

from overnight.errors import UserError
from overnight.evals import hellaswag, jsonl, lambada


@pytest.mark.parametrize("part", ["[", "[title", "[a\n"])
def test_brackets_that_nothing_closes_are_searched_once(part: str) -> None:
    text = part * 2_000_000
    assert hellaswag.clean(text) == text.strip()


def test_tags_are_removed_as_lm_eval_does_it() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices("[]a\n\r", k=12))
        assert hellaswag.BRACKETED.sub(hellaswag.without_brackets, text) == re.sub(r"\[.*?\]", "", text)


@pytest.mark.parametrize("read", [hellaswag.read, lambada.read])
def test_a_line_of_any_length_is_refused(read: object, tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="line 1 has over 1,048,576 bytes"):
        read(path)  # type: ignore[operator]


def test_nothing_is_read_after_the_items_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    with open(path, "wb") as file:
        file.write(b"\n1\n\n2\n")
        file.truncate(1 << 40)
    seen: list[str] = []

    def item(line: bytes, where: str) -> int:
        seen.append(where)
        return int(line)

    assert jsonl.read(path, "test", item, 2) == [1, 2]
    assert seen == [f"{path}, line 2", f"{path}, line 4"]
