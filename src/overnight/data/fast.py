"""gigatoken in tiktoken's place where it is installed (the extra `fast`): the same ids, many times faster.

Each of the two has the letters and digits of its own version of Unicode, which decides where words end. So
texts with a character that they class differently go to tiktoken, whose ids are the ones that count.
"""

import base64
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from overnight.data.tokens import BytePairTokenizer, Tokenizer, gpt2

Encode = Callable[[str], np.ndarray]

PLANES = (*range(0x80, 0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000))  # the others are empty


def encoder(tokenizer: Tokenizer) -> Encode:
    """The fastest function here that does what `tokenizer.encode` does."""
    if not isinstance(tokenizer, BytePairTokenizer):
        return tokenizer.encode
    try:
        theirs = gigatoken(tokenizer)
    except (ImportError, OSError, ValueError):  # not there, no room for its file, another version's ideas
        return tokenizer.encode

    def encode(text: str) -> np.ndarray:
        if text.isascii() or same_words(text):
            return np.asarray(theirs.encode(text)).astype(tokenizer.dtype)
        return tokenizer.encode(text)

    return encode


def gigatoken(tokenizer: BytePairTokenizer) -> Any:
    """The same merges as a gigatoken.Tokenizer. Raises ImportError where it is not installed."""
    import gigatoken

    with tempfile.TemporaryDirectory() as folder:
        ranks = Path(folder) / "ranks.tiktoken"
        pieces = tokenizer.id_bytes()[: tokenizer.eot]
        lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
        ranks.write_text("".join(lines))
        # Without the empty special_tokens, a literal <|endoftext|> in a text would become its id.
        return gigatoken.Tokenizer.from_tiktoken(ranks, pretokenizer="gpt2", special_tokens={})


def same_words(text: str) -> bool:
    """Whether both tokenizers know the same classes of all characters; no for what is not Unicode."""
    try:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError:
        return False
    return not unlike()[points].any()


@cache
def unlike() -> np.ndarray:
    """Of every code point, whether the two class it differently: (0x110000,) bool. Takes under a second, so
    it waits for the first text that is not ASCII.

    What follows a letter, digit or space is a new word; after anything else, 's goes on with it. So c's has
    other tokens where c's class is another.
    """
    tokenizer = gpt2()
    theirs = gigatoken(tokenizer)
    found = np.zeros(0x110000, dtype=bool)

    def look(points: tuple[int, ...]) -> None:
        text = "\n".join(f"{chr(point)}'s" for point in points)
        if np.array_equal(theirs.encode(text), tokenizer.encode(text)):
            return
        if len(points) == 1:
            found[points[0]] = True
        else:
            look(points[: len(points) // 2])
            look(points[len(points) // 2 :])

    for at in range(0, len(PLANES), 8192):
        look(PLANES[at : at + 8192])
    return found
