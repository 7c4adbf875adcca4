"""A corpus in one .jsonl file, and the tokens and files that `prepare` makes of it."""

import json
import random
from pathlib import Path

from overnight.data.manifest import Data


def corpus(folder: Path, texts: list[str]) -> str:
    """The SOURCE of some documents, written to one .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"text:{folder}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(data: Data, split: str) -> list[int]:
    return data.split(split).read(0, len(data.split(split))).tolist()


def at_endoftext(data: Data, row: list[int]) -> list[str]:
    """The text before the first <|endoftext|> of a row of tokens, and that behind each."""
    parts: list[list[int]] = [[]]
    for token in row:
        if token == data.tokenizer.eot:
            parts.append([])
        else:
            parts[-1].append(token)
    return [data.tokenizer.decode(part) for part in parts]


def some_documents(count: int) -> list[str]:
    """Documents of different lengths with all kinds of characters."""
    words = ["the", "cat's", "mat,", "漢字", "año", "\n", "😀", "(x", "+", "1234)", "<|endoftext|>"]
    return [" ".join(random.Random(i).choices(words, k=1 + i % 50)) + f" {i}" for i in range(count)]
