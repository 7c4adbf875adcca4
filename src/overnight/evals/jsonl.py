"""The items of a benchmark: a file of JSON, one item per line, read a line at a time."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from overnight.errors import UserError
from overnight.files import open_regular, reason

T = TypeVar("T")
LONGEST_LINE = 1 << 20  # bytes; items have a few thousand


def read(path: Path, benchmark: str, item: Callable[[bytes, str], T], limit: int = 0) -> list[T]:
    """The first `limit` items, or all. item: a line -> an item; its second argument names the line in errors.

    Raises UserError where the file cannot be read or has no items in it.
    """
    try:
        found = [item(line, where) for line, where in islice(lines(path), limit or None)]
    except OSError as error:
        raise UserError(f"cannot read the {benchmark} file {path}: {reason(error)}.") from None
    if not found:
        raise UserError(f"{path} has no {benchmark} items in it.")
    return found


def lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """The lines that are not empty, each with its name for errors."""
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}, line {number} has over {LONGEST_LINE:,} bytes: it is not an item.")
            if not line.isspace():
                yield line, f"{path}, line {number}"
