"""Tokens in the order of their documents -> the shards of training and validation.

Which rule decides is known before the first token: the first shard (FineWeb, as the lecture and llm.c have
it), one document in 20 by its content, or, of few documents, the last tenth of the tokens.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from overnight.data.manifest import BY_FIRST_SHARD, Manifest
from overnight.data.shards import ShardWriter, Tokens, open_shard
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.visible import as_json

FEW_DOCUMENTS = 100  # below this, validation is the end of the tokens, not a choice of documents
VAL_ONE_IN = 20
BY_HASH = f"documents whose SHA-256 is 0 modulo {VAL_ONE_IN}"
BY_TAIL = "the last tenth of the tokens"
RULES = (BY_FIRST_SHARD, BY_HASH, BY_TAIL)
BLOCK = 1 << 20  # tokens copied at a time


def chosen_for_validation(text: str) -> bool:
    """One document in 20, by content. Of a document longer than a piece (1 Mi characters), the first."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") % VAL_ONE_IN == 0


class Splits:
    """The shards of a data folder in the making."""

    def __init__(self, folder: Path, rule: str, shard_tokens: int, tokenizer: Tokenizer):
        if rule not in RULES:
            raise ValueError(f"the split {as_json(rule)} is none of {', '.join(RULES)}")
        self.folder, self.rule, self.shard_tokens, self.tokenizer = folder, rule, shard_tokens, tokenizer
        self._eot = np.array([tokenizer.eot], dtype=tokenizer.dtype)
        if rule == BY_TAIL:
            self._writers = {"all": ShardWriter(folder, "all", 1, 2**31 - 1, tokenizer.dtype)}
        else:
            self._writers = {split: self._writer(split) for split in ("train", "val")}

    def _writer(self, split: str) -> ShardWriter:
        first = {"train": 1, "val": 0}[split]
        return ShardWriter(self.folder, split, first, self.shard_tokens, self.tokenizer.dtype)

    def add(self, first: bool, validation: bool, ids: np.ndarray) -> None:
        """A piece of a document, (n,) ids. <|endoftext|> goes before the first of a document. `validation`
        is what the rule by hash says of it."""
        ids = np.concatenate([self._eot, ids]) if first else ids
        if self.rule == BY_FIRST_SHARD:
            room = self.shard_tokens - len(self._writers["val"])
            self._writers["val"].append(ids[:room])
            self._writers["train"].append(ids[room:])
        elif self.rule == BY_TAIL:
            self._writers["all"].append(ids)
        else:
            self._writers["val" if validation else "train"].append(ids)

    def sync(self) -> dict[str, Any]:
        """Make sure that all of it is on the disk; what `resume` needs to go on from here."""
        return {name: writer.sync() for name, writer in self._writers.items()}

    def resume(self, state: dict[str, Any]) -> None:
        for name, writer in self._writers.items():
            writer.resume(state[name])

    def close(self, source: str) -> list[dict[str, Any]]:
        """Finish the shards; their entries for the manifest. `source` is named where there is too little."""
        if self.rule == BY_TAIL:
            shards = self._split_tail(self._writers["all"].close())
        else:
            shards = [*self._writers["train"].close(), *self._writers["val"].close()]
        found = totals(shards)
        if min(found.values()) < 2:
            raise UserError(
                f"{source} is too small to split: {found['train']} tokens of training and {found['val']} of "
                "validation. Add text"
                + (", or give a smaller --shard-tokens." if self.rule == BY_FIRST_SHARD else ".")
            )
        return shards

    def _split_tail(self, everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copy nine tenths to training and one to validation. The files of the whole stay: see `clear`."""
        row = Tokens([open_shard(self.folder / shard["file"]) for shard in everything])
        border = len(row) * 9 // 10
        shards = []
        for split, start, end in (("train", 0, border), ("val", border, len(row))):
            writer = self._writer(split)
            for at in range(start, end, BLOCK):
                writer.append(row.read(at, min(BLOCK, end - at)))
            shards += writer.close()
        return shards


def totals(shards: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens of each split."""
    return {
        split: sum(shard["tokens"] for shard in shards if shard["split"] == split)
        for split in ("train", "val")
    }


def manifest(
    shards: list[dict[str, Any]],
    tokenizer: Tokenizer,
    request: dict[str, Any],
    split: str,
    documents: int,
    text_bytes: int,
    details: dict[str, Any] | None = None,
) -> Manifest:
    """What a finished folder says of itself; `documents` and `text_bytes` count all that was read."""
    return Manifest(
        source=request["source"],
        request=request,
        documents=documents,
        tokens=totals(shards),
        bytes=text_bytes,
        dtype=tokenizer.dtype.name,
        split=split,
        tokenizer={
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "sha256": tokenizer.sha256,
        },
        shards=shards,
        details=details or {},
    )
