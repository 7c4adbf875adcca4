"""Whether a verb may replace the file at its --out: only one that it wrote itself, an earlier time."""

from collections.abc import Callable
from pathlib import Path

from overnight.files import open_regular, parent_problem, reason

HEAD = 1 << 20  # bytes that are looked at


def overwrite_problem(path: Path, is_ours: Callable[[bytes], bool], whose: str) -> str | None:
    """What keeps `path` from being written; None where nothing is there, or a file that is ours.

    is_ours: given the first HEAD bytes; raises ValueError where they are nothing of the kind.
    whose: as in "is not a report".
    """
    try:
        if problem := parent_problem(path):
            return problem
        if path.is_dir():
            return f"{path} is a folder: give --out a file's name."
        with open_regular(path) as file:
            ours = is_ours(file.read(HEAD))
    except FileNotFoundError:  # or a broken link, which is replaced and not followed
        return None
    except OSError as error:
        return f"{str(path)[:200]} cannot be written: {reason(error)}. Give another --out."
    except (ValueError, TypeError, RecursionError):
        ours = False
    return None if ours else f"{path} exists and {whose}: give another --out."
