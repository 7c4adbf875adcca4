"""The lines of records.jsonl: which of them are records."""

import json
from typing import Any

LONGEST_LINE = 16 << 20  # bytes; a sample of a million tokens has less
LOSS = {"loss": float | None}
READ: dict[str, dict[str, Any]] = {"train": LOSS, "val": LOSS, "event": {"name": str, "detail": dict}}


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
