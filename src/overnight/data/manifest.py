"""A prepared data folder: manifest.json, tokenizer.json and the shards they speak of."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overnight.data import tokens
from overnight.data.shards import Shard, Tokens, check_entries, count_of, open_shard
from overnight.errors import UserError
from overnight.files import read_json, sha256_file
from overnight.visible import as_json, shell_path

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
BY_FIRST_SHARD = "the first shard in the dataset's order"  # the lecture's and llm.c's split of FineWeb


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json: what was prepared from what."""

    source: str
    """Where the documents came from, as `prepare` was told (a name and version for `stdlib`)."""
    request: dict[str, Any]
    """What the user asked for: source, tokenizer, shard_tokens. Equal requests are the same data."""
    documents: int
    tokens: dict[str, int]
    """Tokens of each split, <|endoftext|> included."""
    bytes: int
    """UTF-8 bytes of the documents' text."""
    dtype: str
    split: str
    """The rule by which validation was chosen, in words."""
    tokenizer: dict[str, Any]
    """kind, vocab_size, eot and sha256 of the tokenizer."""
    shards: list[dict[str, Any]]
    """file, split, tokens and sha256 of each shard, in order."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the source says of itself: licences, the dump's date, a revision."""
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Raise ValueError, KeyError or TypeError if this is not what `prepare` writes."""
        totals = {"train": 0, "val": 0}
        for shard in check_entries(self.shards):
            totals[shard["split"]] += shard["tokens"]
        count_of(self.documents, "documents")
        count_of(self.bytes, "bytes")
        for name, kind in (("source", str), ("split", str), ("request", dict), ("details", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"the {name} is {as_json(getattr(self, name))}")
        if self.version != 1:
            raise ValueError(f"its version is {as_json(self.version)}, not 1")
        if self.tokens != totals or any(type(count) is not int for count in self.tokens.values()):
            raise ValueError(f"the tokens are {as_json(self.tokens)}, not the shards' {totals}")


class Data:
    """An opened data folder. Opening checks every shard's size against header and manifest."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"no prepared data in {folder} (no {MANIFEST} there).",
                f"Make some: overnight prepare SOURCE --out {shell_path(folder)}",
            )
        described = read_json(path, "manifest", seal=True)
        try:
            self.manifest = Manifest(**described)
            self.manifest.check()
            shards = {
                split: [self._shard(shard) for shard in self.manifest.shards if shard["split"] == split]
                for split in ("train", "val")
            }
            claimed = self.manifest.tokenizer["sha256"]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"the manifest {path} is damaged: {error}. Prepare the data again.") from None
        self.tokenizer = tokens.load(folder / TOKENIZER)
        if self.tokenizer.sha256 != claimed:
            raise UserError(f"{folder / TOKENIZER} is not the one of the manifest. Prepare the data again.")
        if self.manifest.dtype != self.tokenizer.dtype.name:
            raise UserError(
                f"the manifest {path} is damaged: its dtype is {as_json(self.manifest.dtype)}, "
                f"the tokenizer's {self.tokenizer.dtype.name}. Prepare the data again."
            )
        self._tokens = {split: Tokens(found, self.tokenizer.vocab_size) for split, found in shards.items()}

    def _shard(self, entry: dict[str, Any]) -> Shard:
        shard = open_shard(self.folder / entry["file"])
        if len(shard) != entry["tokens"]:
            raise UserError(
                f"the shard {self.folder / entry['file']} holds {len(shard):,} tokens, "
                f"not the manifest's {entry['tokens']:,}. Prepare the data again."
            )
        return shard

    def split(self, name: str) -> Tokens:
        """The tokens of 'train' or 'val'."""
        return self._tokens[name]

    def verify(self, split: str = "") -> None:
        """Read every shard, or those of one split, and compare its SHA-256 with the manifest's."""
        for entry in self.manifest.shards:
            if split not in ("", entry["split"]):
                continue
            if sha256_file(self.folder / entry["file"]) != entry["sha256"]:
                raise UserError(
                    f"the shard {self.folder / entry['file']} has changed since it was made "
                    "(its SHA-256 is not the manifest's). Prepare the data again."
                )

    @property
    def fingerprint(self) -> str:
        """Identity of tokens, their order and their tokenizer, whatever the folder is called."""
        parts = [self.manifest.tokenizer["sha256"]]
        parts += [f"{shard['split']} {shard['sha256']}" for shard in self.manifest.shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
