"""JSON from outside, parsed in memory in proportion to its size.

`[]` is two characters and 64 bytes of memory, so a limit on characters does not limit memory: 256 MB of `[],`
take 6 GB. So the number of values is limited as well, before anything is parsed.
"""

import json
import re
from itertools import islice
from typing import Any

MOST_VALUES = 4 << 20  # of a file; the tokenizer with the most merges (2**20) has 3.2 million

# A whole string, even one without a closing quote; or a character that precedes a value.
MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)


class TooManyValues(ValueError):
    """A JSON text has more values than anything of its kind."""


def parse(content: bytes, most_values: int = MOST_VALUES) -> Any:
    """Parse a JSON text. Raises TooManyValues, ValueError if it is not JSON, and RecursionError if it is
    nested too deep."""
    at_most = sum(content.count(mark) for mark in (b",", b"[", b"{"))  # includes those inside strings
    if at_most > most_values and has_more(content, most_values):
        raise TooManyValues(f"it has over {most_values:,} values")
    return json.loads(content)


def has_more(content: bytes, most_values: int) -> bool:
    """Whether there are more than `most_values` values outside strings."""
    marks = (found for found in MARK.finditer(content) if content[found.start()] != ord('"'))
    return next(islice(marks, most_values, None), None) is not None
