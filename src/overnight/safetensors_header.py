"""What is wrong with the header of a safetensors file, found before the library reads it.

The library accepts headers of 100 MB, for which it takes 2 GB and half a minute.
"""

import os
import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from overnight import bounded_json
from overnight.files import open_regular

LARGEST = 16 << 20  # bytes; a tensor takes about 100
MOST_TENSORS = 100_000  # a model of 1,000 layers has 12,004


def problem(path: Path) -> str:
    """What is wrong, and in which tensor a file that was cut short ends; "" where nothing is. Raises OSError
    where the file cannot be read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            return f"{size} bytes are no header"
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            return f"its header claims {length:,} bytes, the file has {size:,}"
        if length > LARGEST:
            return f"its header has {length:,} bytes, over {LARGEST:,}"
        try:
            header = bounded_json.parse(file.read(length))
            header.pop("__metadata__", None)
            ends = {name: 8 + length + tensor["data_offsets"][1] for name, tensor in header.items()}
            last = sorted(ends, key=lambda name: ends[name])
        except bounded_json.TooManyValues as error:
            return f"its header is damaged: {error}"
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "its header is not JSON of tensors"
    if len(ends) > MOST_TENSORS:
        return f"it has {len(ends):,} tensors, over {MOST_TENSORS:,}"
    cut = next((name for name in last if ends[name] > size), None)
    return f"it is cut short at byte {size:,}, inside {cut}, which ends at {ends[cut]:,}" if cut else ""


def wrong_dtype(file: Any, names: Iterable[str], wanted: Collection[str]) -> str:
    """Name the first of these tensors of an open file that has another dtype than those wanted; "" where none
    has. No tensor is read."""
    for name in sorted(names):
        if (dtype := file.get_slice(name).get_dtype()) not in wanted:
            return f"{name} is {dtype}, not {' or '.join(wanted)}"
    return ""
