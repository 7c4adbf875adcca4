"""The content of a checkpoint's state.json."""

from dataclasses import dataclass, field
from typing import Any

from overnight.visible import as_json


@dataclass(frozen=True)
class State:
    """Everything about a checkpoint but its tensors."""

    step: int
    """Updates done."""
    tokens: int
    """Tokens trained on."""
    seed: int
    """The random state: what step s draws (dropout) is seeded from seed, s and rank, so the seed is all."""
    data: str
    """Fingerprint of the data."""
    records_bytes: int
    """Size of records.jsonl when everything up to this step was in it and synced."""
    val_loss: float | None
    """Validation loss at this step, if it was measured."""
    scaler: dict[str, float]
    """Scale and growth of fp16's gradient scaler."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files beside this one."""
    skipped: list[list[int]] = field(default_factory=list)
    """Ranges of windows that are left out since they made bad steps: data/batches.py's `skipped`."""
    bad_steps: int = 0
    """Updates in a row, the newest the last, that did not happen because loss or gradient was not finite."""
    records_sha256: str = ""
    """SHA-256 of the first `records_bytes` of records.jsonl; "" in checkpoints of earlier versions."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer, likewise."""
    config: dict[str, Any] = field(default_factory=dict)
    """The content of config.json, likewise {}."""
    owed: list[str] = field(default_factory=list)
    """Evaluations of this step that a stop left undone: validate, hellaswag, sample."""

    def problem(self) -> str:
        """What in here cannot be true, although the checksum is right."""
        counts = (self.step, self.tokens, self.seed, self.records_bytes, self.bad_steps)
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            return f"step, tokens, seed, records_bytes and bad_steps are {as_json(counts)}"
        edges = [0] + [edge for one in self.skipped for edge in one]
        pairs = all(len(one) == 2 for one in self.skipped) and all(type(edge) is int for edge in edges)
        if not pairs or edges != sorted(edges):
            return f"skipped is {as_json(self.skipped)}"
        numbers = [*self.scaler.values(), *([] if self.val_loss is None else [self.val_loss])]
        if not all(type(number) in (int, float) and abs(number) < 1e300 for number in numbers):
            return f"val_loss is {as_json(self.val_loss)}, scaler {as_json(self.scaler)}"
        texts = (self.data, *self.sha256.values(), self.records_sha256, self.tokenizer)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.config, dict):
            return f"data, checksums and tokenizer are {as_json(texts)}"
        if not isinstance(self.owed, list) or not {"validate", "hellaswag", "sample"}.issuperset(self.owed):
            return f"owed is {as_json(self.owed)}"
        return ""
