"""The lines of records.jsonl: how a record is written, and which lines are sound records."""

import json
import math
import zlib
from collections.abc import Iterator
from typing import IO, Any

LONGEST_LINE = 16 << 20  # bytes; a sample of a million tokens has less
CRC = b', "crc": "%08x"}\n'
LOSS = {"loss": float | None}
READ: dict[str, dict[str, Any]] = {"train": LOSS, "val": LOSS, "event": {"name": str, "detail": dict}}


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def encoded(record: dict[str, Any]) -> bytes:
    """The line of a record, with its checksum as the last field."""
    return with_crc(json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def with_crc(line: bytes) -> bytes:
    """A line of JSON with one more field: the CRC-32 of the line without it and without its newline."""
    return line[:-2] + CRC % zlib.crc32(line[:-1])


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line, without its checksum; None if the line is not a record, or was changed.
    Records of earlier versions have no checksum."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not is_record(record):
        return None
    if "crc" in record and line != with_crc(line[: -len(CRC % 0)] + b"}\n"):
        return None
    record.pop("crc", None)
    return record


def is_record(value: Any) -> bool:
    """Whether it is an object that has what is read of records of its kind."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    wanted = {"step": int, "tokens": int} | READ.get(value["kind"], {})
    return all(
        name in value and isinstance(value[name], kind) and not isinstance(value[name], bool)
        for name, kind in wanted.items()
    )


def later_events(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of events in the rest of a file, without torn and damaged ones, for which no checkpoint
    vouches."""
    while line := file.readline(LONGEST_LINE):
        if line.endswith(b"\n") and (record := parse(line)) and record["kind"] == "event":
            yield line
