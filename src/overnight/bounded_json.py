"""JSON from outside, parsed in memory in proportion to its size.

`[]` is two characters and 64 bytes of memory, so a limit on characters does not limit memory: 256 MB of `[],`
take 6 GB. So the number of values is limited as well, before anything is parsed.
"""

import json
import re
from itertools import islice
from typing import Any

MOST_VALUES = 4 << 20  # of a file; the tokenizer with the most merges (2**20) has 3.2 million

# A string, also one that nothing closes, as a whole; or what stands before a value.
MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)


class TooManyValues(ValueError):
    """A JSON text has more values than anything of its kind."""


def parse(content: bytes, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON text. Raises TooManyValues, ValueError where it is not JSON, and RecursionError
    where it is nested too deep."""
    at_most = sum(content.count(mark) for mark in (b",", b"[", b"{"))  # those inside strings included
    if at_most > most_values and has_more(content, most_values):
        raise TooManyValues(f"it has over {most_values:,} values")
    return json.loads(content)


def has_more(content: bytes, most_values: int) -> bool:
    """Whether more values than that stand outside of strings."""
    marks = (found for found in MARK.finditer(content) if content[found.start()] != ord('"'))
    return next(islice(marks, most_values, None), None) is not None
