"""Errors: few lines, all problems at once, one exit code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight import errors
from overnight.errors import Failure, UserError, at_most_three, near, refuse


def test_the_exit_codes_are_the_contracts() -> None:
    codes = errors.DONE, errors.FAILURE, errors.WRONG_INPUT, errors.SAVED, errors.INTERRUPTED
    assert codes == (0, 1, 2, 75, 130)
    assert (UserError("x").code, Failure("x").code) == (2, 1)


def test_by_hand() -> None:
    assert str(UserError("a", "b")) == "a\nb"
    assert str(UserError("a", "b", "c", "d")) == "a\nb\nc d"
    assert str(UserError("a path\nwith a newline")) == "a path with a newline"


@given(st.lists(st.text(st.characters(categories=["L", "Zs"], include_characters="\n\t"), min_size=1)))
def test_no_word_is_lost_and_no_fourth_line_written(lines: list[str]) -> None:
    kept = at_most_three(lines)
    assert len(kept) <= 3
    assert not any("\n" in line for line in kept)
    assert " ".join(kept).replace(";", " ").split() == " ".join(lines).split()


def test_all_problems_are_raised_at_once_and_none_raises_nothing() -> None:
    refuse(iter(()))
    with pytest.raises(UserError) as raised:
        refuse(f"problem {n}" for n in range(5))
    assert all(f"problem {n}" in str(raised.value) for n in range(5))


@pytest.mark.parametrize(
    ("word", "remedy"), [("stepz", " Did you mean steps?"), ("sed", " Did you mean seed?"), ("xylophone", "")]
)
def test_only_a_near_miss_is_suggested(word: str, remedy: str) -> None:
    assert near(word, ["steps", "seed"]) == remedy
