"""What ends a command: the exit codes, and the error that a user can mend.

0 done    1 failure    2 wrong input    75 saved, run me again    130 interrupted
"""

import difflib
from collections.abc import Iterable, Sequence

from overnight.visible import one_line

DONE, FAILURE, WRONG_INPUT, SAVED, INTERRUPTED = 0, 1, 2, 75, 130
LONGEST = 2000  # characters of a line: what a damaged file holds is quoted in some


class UserError(Exception):
    """Wrong input: says what is wrong and what would be right, in one to three lines; exit code 2."""

    code = WRONG_INPUT

    def __init__(self, *lines: str):
        super().__init__("\n".join(at_most_three(lines)))


class Failure(UserError):
    """Something broke that the input did not cause (a full disk, say); exit code 1, no traceback."""

    code = FAILURE


class LostRank(Failure):
    """Another rank is gone, or cannot be reached."""


class Preempted(KeyboardInterrupt):
    """Asked to stop before the first step: exit code 75, because the same command begins anew."""


class Abandoned(Exception):
    """Stopped in the middle of something that is done again after a resume: a step, an evaluation."""


def at_most_three(lines: Sequence[str]) -> list[str]:
    """All of `lines` in at most three lines of bounded length, control characters made visible: what a file
    or its name contains may be quoted in them. The third line holds what is left over."""
    clean = [one_line(line[: 4 * LONGEST])[:LONGEST] for line in lines]
    return clean if len(clean) <= 3 else [*clean[:2], " ".join(clean[2:])]


def refuse(problems: Iterable[str]) -> None:
    """Raise one UserError that names all problems; do nothing where there is none."""
    if found := list(problems):
        raise UserError(*found)


def near(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The remedy for a mistyped word: ' Did you mean X?', or nothing when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {prefix}{close[0]}?" if close else ""
