"""The lines of records.jsonl: how a record is written, and which of them are records."""

import contextlib
import json
import math
from collections.abc import Iterator
from typing import IO, Any

LONGEST_LINE = 16 << 20  # bytes; a sample of a million tokens has less
LOSS = {"loss": float | None}
READ: dict[str, dict[str, Any]] = {"train": LOSS, "val": LOSS, "event": {"name": str, "detail": dict}}


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON has no way to write."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def encoded(record: dict[str, Any]) -> bytes:
    """The line of a record."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None for what is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if is_record(record) else None


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
    """The lines of events in the rest of a file. What is torn or damaged there is left out: no checkpoint
    vouches for it."""
    while line := file.readline(LONGEST_LINE):
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            if line.endswith(b"\n") and json.loads(line).get("kind") == "event":
                yield line
