"""Text <-> token ids: GPT-2's byte-pair encoding, the same trained on your corpus, or single characters.

A tokenizer encodes any text it is given as plain text (the literal "<|endoftext|>" included); the id `eot`
of <|endoftext|> is only ever put in by whoever separates documents. All of a tokenizer is in its
`to_json()`, the content of tokenizer.json.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from overnight.errors import UserError
from overnight.files import read_json
from overnight.visible import as_json

MERGES = "gpt2_merges.bin"
ENDOFTEXT = "<|endoftext|>"

# GPT-2's splitting of text into words, inside which pairs are merged
# (github.com/openai/gpt-2, src/encoder.py), in tiktoken's faster equivalent form.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

SPACE = r"[^\S\x1c-\x1f]"  # the pattern's \s; Python's has four characters more
LONG_SPACE = re.compile(rf"(?<!{SPACE}){SPACE}{{100000,}}(?={SPACE}(?!{SPACE}|\Z))")
MOST_BYTES = 64 << 20  # of all the tokens of a vocabulary together: 64 merges can ask for 2**64
MOST_MERGES = 1 << 20  # as many as `prepare --tokenizer bpe:N` makes
LONGEST_TOKEN = 16 << 10  # bytes: a sample of a thousand tokens is 16 MB at most
# Characters of a run without a space that merges are learnt from: time is quadratic in it. They take 4,000
# bytes at most, so no tokenizer of ours has a token longer than LONGEST_TOKEN.
LONGEST_WORD = 1000
LONG_RUN = re.compile(rf"((?<!\S)(?:\S{{{LONGEST_WORD}}})++|(?<!\s)(?:\s{{{LONGEST_WORD}}})++)")


def byte_order() -> list[int]:
    """The byte that each of the tokens 0 to 255 stands for: the printable ones of Latin-1 first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in set(printable)]


class Tokenizer:
    """What every kind shares. Ids are 0 .. vocab_size - 1; `eot` is the last."""

    kind: str
    vocab_size: int

    @property
    def eot(self) -> int:
        return self.vocab_size - 1

    @property
    def dtype(self) -> np.dtype:
        """What ids are stored as: uint16 while they fit."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, (n,) of `dtype`. Raises UserError for what has no id or is no Unicode."""
        try:
            return self._encode(text).astype(self.dtype)
        except UnicodeEncodeError:
            raise UserError(f"the text {text[:40]!r} is not valid Unicode: give UTF-8.") from None

    def _encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def id_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each id; <|endoftext|> has none."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    @cached_property
    def _bytes(self) -> list[bytes]:
        return self.id_bytes()

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of each id, (vocab_size,) int64: what bits per byte are counted in."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids; a token can end in the middle of a character. <|endoftext|> is left out."""
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; broken UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @property
    def sha256(self) -> str:
        """Identity of the tokenizer, the same on every machine."""
        content = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding: 256 single bytes, then one token a merge, then <|endoftext|>.

    merges: (n, 2) ids; merge i joins two earlier tokens into token 256 + i. tiktoken does the encoding.
    """

    def __init__(self, merges: np.ndarray, kind: str):
        self.kind, self.merges = kind, merges
        self.vocab_size = 256 + len(merges) + 1
        self._pieces = [bytes([byte]) for byte in byte_order()]
        total = 256
        for left, right in merges.tolist():
            length = len(self._pieces[left]) + len(self._pieces[right])
            total += length
            if length > LONGEST_TOKEN:
                raise ValueError(f"a token has over {LONGEST_TOKEN:,} bytes")
            if total > MOST_BYTES:
                raise ValueError(f"its tokens hold over {MOST_BYTES >> 20} MiB")
            self._pieces.append(self._pieces[left] + self._pieces[right])
        ranks = {piece: rank for rank, piece in enumerate(self._pieces)}
        if len(ranks) != len(self._pieces):
            raise ValueError("two merges make the same token")
        import tiktoken  # only here: models are measured on machines that have torch and no more

        self._encoding = tiktoken.Encoding(
            name=kind, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def _encode(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text)
        except UnicodeEncodeError:
            raise
        except ValueError:
            # The pattern gives up on a run of a million spaces. All but the last space of a run are a word
            # of their own, so a cut before that last one changes nothing.
            cuts = [0, *(run.end() for run in LONG_SPACE.finditer(text)), len(text)]
            if len(cuts) == 2:
                raise
            return np.concatenate([self._encoding.encode_to_numpy(text[a:b]) for a, b in pairwise(cuts)])

    def id_bytes(self) -> list[bytes]:
        return [*self._pieces, b""]

    def to_json(self) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": self.kind, "vocab_size": self.vocab_size, "eot": self.eot}
        if self.kind != "gpt2":  # GPT-2's merges come with the package
            described["merges"] = self.merges.tolist()
        return described


class CharTokenizer(Tokenizer):
    """One id a character, in code point order, then <|endoftext|>."""

    kind = "char"

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters) + 1
        end = 0xFFFFFFFF  # no character; behind the last, and there where there is none
        self._points = np.array([*map(ord, characters), end], dtype=np.uint32)

    def _encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = np.searchsorted(self._points, points)
        known = self._points[ids] == points
        if not known.all():
            character = chr(points[np.argmin(known)])
            raise UserError(
                f"the character {character!r} (U+{ord(character):04X}) is not one of the "
                f"{len(self.characters)} that this char tokenizer knows: leave it out of the text."
            )
        return ids

    def id_bytes(self) -> list[bytes]:
        return [*(c.encode("utf-8") for c in self.characters), b""]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "char", "vocab_size": self.vocab_size, "eot": self.eot, "characters": self.characters
        }  # fmt: skip


@cache
def gpt2() -> BytePairTokenizer:
    """GPT-2's tokenizer: 50,257 ids, <|endoftext|> is 50,256. Needs no network."""
    merges = np.frombuffer((files("overnight.data") / MERGES).read_bytes(), dtype="<u2").reshape(-1, 2)
    return BytePairTokenizer(merges, "gpt2")


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """The characters of a corpus."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))


def train_bpe(texts: Iterator[str], vocab_size: int) -> BytePairTokenizer:
    """Byte-pair encoding learnt from `texts`; fewer ids than asked for where the texts have fewer pairs."""
    from tokenizers import Tokenizer as Trainable
    from tokenizers import models, pre_tokenizers, trainers

    learner = Trainable(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator((part for text in texts for part in short_runs(text)), trainer)
    # The library writes bytes as GPT-2's printable stand-ins; ours are ids in GPT-2's order.
    stand_ins = [chr(byte) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(byte_order())]
    ids = {token: i for i, token in enumerate(stand_ins)}
    merges: list[tuple[int, int]] = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left + right not in ids:  # a second way to a token that exists adds nothing
            merges.append((ids[left], ids[right]))
            ids[left + right] = len(ids)
    return BytePairTokenizer(np.array(merges, dtype=np.int64).reshape(-1, 2), "bpe")


def short_runs(text: str) -> Iterator[str]:
    """A text cut inside runs of LONGEST_WORD characters and more, with or without spaces. Time is linear: a
    run is searched from its first character only."""
    for number, part in enumerate(LONG_RUN.split(text)):
        length = LONGEST_WORD if number % 2 else max(1, len(part))  # every second part is a run
        yield from (part[start : start + length] for start in range(0, len(part), length))


def from_json(described: dict[str, Any], path: Path | str) -> Tokenizer:
    """The tokenizer that `to_json` described; `path` names the file in errors."""
    kind = described.get("kind")
    try:
        tokenizer: Tokenizer
        if kind == "gpt2":
            tokenizer = gpt2()
        elif kind == "char":
            characters = described["characters"]
            if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
                raise ValueError("characters are not sorted and distinct")
            characters.encode("utf-8")  # a ValueError for half a surrogate pair
            tokenizer = CharTokenizer(characters)
        elif kind == "bpe":
            tokenizer = BytePairTokenizer(_merges(described["merges"]), "bpe")
        else:
            raise ValueError(f"kind {as_json(kind)} is not one of gpt2, char, bpe")
        if (described.get("vocab_size"), described.get("eot")) != (tokenizer.vocab_size, tokenizer.eot):
            raise ValueError("vocab_size or eot do not fit the rest")
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"the tokenizer {path} is damaged or not Overnight's: {reason}.") from None
    return tokenizer


def _merges(pairs: Any) -> np.ndarray:
    if not isinstance(pairs, list):
        raise TypeError("merges are no list")
    if len(pairs) > MOST_MERGES:
        raise ValueError(f"it has {len(pairs):,} merges, over {MOST_MERGES:,}")
    for limit, pair in enumerate(pairs, 256):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < limit for i in pair)
        ):
            raise ValueError("merges are not pairs of earlier ids")
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def load(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json."""
    return from_json(read_json(path, "tokenizer"), path)
