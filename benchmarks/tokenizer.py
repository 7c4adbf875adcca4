"""gigatoken (the extra `fast`) beside tiktoken, on one core, with GPT-2's tokenizer.

    python benchmarks/tokenizer.py [FILE of English text]

The text is the Python source of this environment, every file once, in documents of at most 5,000 characters;
gigatoken remembers words, so its encoder is made anew for each round and reads nothing twice. The ids of both
are compared. The second figure is the encoder as `prepare` uses it, which looks for characters that the two
class differently.
"""

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from common import save, summary
from overnight.data import fast, tokens

SIZE, LONGEST, ROUNDS = 20_000_000, 5000, 3


def python_source() -> list[str]:
    """About SIZE characters of this environment's modules, in documents."""
    found: list[str] = []
    total = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            found += cut(text)
            total += len(text)
            if total >= SIZE:
                return found
    return found


def cut(text: str) -> list[str]:
    return [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]


def rates(texts: list[str]) -> dict[str, object]:
    tokenizer = tokens.gpt2()
    size = sum(len(text.encode()) for text in texts)
    makers: dict[str, Callable[[], fast.Encode]] = {
        "tiktoken": lambda: tokenizer.encode,
        "gigatoken": lambda: fast.gigatoken(tokenizer).encode,
        "in prepare": lambda: fast.encoder(tokenizer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(ROUNDS):
        for name, make in makers.items():
            encode = make()
            began = perf_counter()
            for text in texts:
                encode(text)
            seconds[name].append(perf_counter() - began)
    encode = fast.encoder(tokenizer)
    assert all(np.array_equal(encode(text), tokenizer.encode(text)) for text in texts)
    medians = {name: summary(found, 1.0)["median"] for name, found in seconds.items()}
    return {
        "mb": round(size / 1e6, 1),
        "documents": len(texts),
        "mb_per_second": {name: round(size / 1e6 / median, 1) for name, median in medians.items()},
        "times_tiktoken": {name: round(medians["tiktoken"] / medians[name], 1) for name in medians},
    }


def main(*files: str) -> None:
    figures = {"python source": rates(python_source())}
    for name in files:
        figures[Path(name).stem] = rates(cut(Path(name).read_text(encoding="utf-8")))
    save("tokenizer", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
