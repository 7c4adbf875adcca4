"""JSON files of ours, changed as a person or a bad disk would change them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overnight.files import CHECKSUM, sealed


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file of ours and seal it again: it is whole, and says something else."""
    described = json.loads(path.read_text())
    described.pop(CHECKSUM, None)
    change(described)
    path.write_text(sealed(described))


def unsealed(path: Path) -> Path:
    """A file of ours without its checksum, as earlier versions wrote it: what it says is looked at."""
    described = json.loads(path.read_text())
    described.pop(CHECKSUM, None)
    path.write_text(json.dumps(described))
    return path


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)
