"""The rows of a dump's XML, <posts><row .../><row .../></posts>, read in constant memory.

Python's own parser, used so that a file which is not a dump is refused early: a document type, where entities
are declared that expand to gigabytes; elements inside rows, which all stay open in memory; and a tag so long
that reading it takes minutes, since the parser begins again at its start with each block.
"""

from collections.abc import Iterator
from typing import IO
from xml.parsers import expat

BLOCK = 1 << 20  # bytes read at a time
LONGEST_TAG = 32 << 20  # bytes; sites allow posts of 30,000 characters


class DocumentType(Exception):
    """The XML declares a document type."""


def xml_rows(file: IO[bytes]) -> Iterator[dict[str, str]]:
    """The attributes of each element in the root. Raises DocumentType, expat.ExpatError, and ValueError or
    LookupError for what is not a dump."""
    rows: list[dict[str, str]] = []
    depth = read = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth == 2:
            rows.append(attributes)
        elif depth > 2:
            raise ValueError(f"an element inside a row: line {parser.CurrentLineNumber}")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*declared: object) -> None:
        raise DocumentType

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    while block := file.read(BLOCK):
        parser.Parse(block)
        read += len(block)
        yield from rows
        rows.clear()
        if read - parser.CurrentByteIndex > LONGEST_TAG:
            raise ValueError(f"over {LONGEST_TAG:,} bytes in one tag: line {parser.CurrentLineNumber}")
    parser.Parse(b"", True)
