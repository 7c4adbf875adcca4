"""Every reader of the product, a valid file for each, and what may come of any other bytes in its place.

A case passes if the reader returns, and then what it returned is right, or if it refuses in at most three
lines. Anything else, an opened file outside the folder too, is an Escape.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from overnight.errors import UserError
from overnight.saved import Damaged

FORBIDDEN = ("/etc/passwd", "outside")  # files, and what names beside the folder begin with


@dataclass(frozen=True)
class Reader:
    """How one kind of file is made, read and spoiled."""

    make: Callable[[Path], Path]
    """Fill a folder; the file in it that is spoiled."""
    read: Callable[[Path], object]
    """Read the file as the product does; AssertionError if what came back is not right."""
    spoil: Callable[[bytes], SearchStrategy[bytes]]


class Escape(AssertionError):
    """What a reader must not do."""


class Bench:
    """A valid file of one reader in `base`/inside, and beside it files that nobody may open."""

    def __init__(self, reader: Reader, base: Path):
        self.reader, inside = reader, base / "inside"
        inside.mkdir(parents=True)
        self.path = reader.make(inside)
        self.valid = self.path.read_bytes()
        (base / "outside").mkdir()
        for path in sorted(p for p in inside.rglob("*") if p.is_file()):
            (base / "outside" / path.name).write_bytes(path.read_bytes())
            (base / f"outside{path.suffix}").write_bytes(path.read_bytes())
        self.base = base.resolve()

    def accepts(self, content: bytes) -> bool:
        """Whether the reader takes the content, or refuses it as it should; raises Escape otherwise."""
        self.path.unlink(missing_ok=True)  # not written over: the last one may still be mapped
        self.path.write_bytes(content)
        try:
            with watched(self.base) as opened:
                self.reader.read(self.path)
        except (UserError, Damaged) as error:
            lines = str(error).splitlines()
            if not 1 <= len(lines) <= 3:
                raise Escape(f"refused in {len(lines)} lines: {error}") from error
            return False
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise Escape(f"{type(error).__name__}: {str(error)[:500]}") from error
        finally:
            if opened:
                raise Escape(f"opened {opened}")
        return True


@contextmanager
def watched(base: Path) -> Iterator[list[str]]:
    """The names that Python's own code opens in here and must not."""
    if not _watch:
        _watch.append(None)
        sys.addaudithook(hook)
    _watch[0] = (str(base), found := [])
    try:
        yield found
    finally:
        _watch[0] = None


_watch: list[Any] = []  # (base, found) while somebody watches: a hook stays for good


def hook(event: str, arguments: tuple) -> None:
    if event == "open" and _watch[0] and isinstance(arguments[0], str | bytes):
        base, found = _watch[0]
        name = os.path.normpath(os.path.join(base, os.fsdecode(arguments[0])))
        if name == FORBIDDEN[0] or name.startswith(os.path.join(base, FORBIDDEN[1])):
            found.append(name)


def readers() -> dict[str, Reader]:
    """All of them, by name."""
    from tests import fuzz_data, fuzz_models, fuzz_text, fuzz_weights

    return fuzz_data.READERS | fuzz_text.READERS | fuzz_models.READERS | fuzz_weights.READERS
