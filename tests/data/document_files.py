"""Write files of documents, compressed or as parquet tables, and read their documents in full."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from overnight.data.readers import Piece, read_file


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents that pieces are parts of."""
    texts: list[str] = []
    for piece in pieces:
        if piece.first:
            texts.append("")
        texts[-1] += piece.text
    return texts


def read(path: Path) -> list[str]:
    return joined(read_file(path))


def write(path: Path, content: bytes) -> Path:
    """Write a file, packed as its name says."""
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


def parquet(path: Path, texts: pa.Array | list, **options: object) -> Path:
    """A table with the texts and a column that nobody asked for."""
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path, **options)
    return path
