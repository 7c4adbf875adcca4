"""How fast `overnight prepare text:` tokenises with GPT-2's tokenizer, and that time is linear in the text.

    python benchmarks/prepare.py

The text is the standard library's, as often as it takes. One worker's rate is text over the time between
runs of two sizes, so that starting Python does not count; two workers show what a second core adds.
"""

import tempfile
from itertools import cycle
from pathlib import Path
from time import perf_counter

from common import overnight, save, summary
from overnight.data.documents import stdlib_files

SIZES = (10, 20, 40)  # MB


def write_corpus(folder: Path, size: int) -> int:
    """Documents of the standard library in numbered .txt files of about 1 MB; the bytes written."""
    folder.mkdir()
    files = cycle(stdlib_files())
    written = number = 0
    while written < size * 1e6:
        text = b""
        while len(text) < 1e6:
            text += next(files).read_bytes()
        (folder / f"{number:04d}.txt").write_bytes(text)
        written, number = written + len(text), number + 1
    return written


def main() -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sizes = {size: write_corpus(root / f"text{size}", size) for size in SIZES}
        for workers in (1, 2):
            seconds: dict[int, list[float]] = {size: [] for size in SIZES}
            for round_ in range(2):
                for size in SIZES:
                    out = root / f"{workers}-{size}-{round_}"
                    began = perf_counter()
                    overnight("prepare", f"text:{root / f'text{size}'}", "--out", out, "--workers", workers)
                    seconds[size].append(perf_counter() - began)
            medians = {size: summary(found, 1.0)["median"] for size, found in seconds.items()}
            small, large = min(SIZES), max(SIZES)
            rate = (sizes[large] - sizes[small]) / (medians[large] - medians[small]) / 1e6
            figures[f"{workers} workers"] = {
                "seconds": {f"{size} MB": median for size, median in medians.items()},
                "mb_per_second": round(rate, 2),
                "mb_per_second_and_worker": round(rate / workers, 2),
            }
    save("prepare", figures)


if __name__ == "__main__":
    main()
