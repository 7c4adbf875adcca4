"""How fast `overnight prepare` tokenises with GPT-2's tokenizer: plain text, parquet, and with gigatoken.

    python benchmarks/prepare.py

The text is the standard library's, as often as it takes, once in .txt files of about 1 MB and once as rows
of parquet. A rate is text over the time between runs of two sizes, so that starting Python does not count;
the seconds at all sizes show that time is linear in the text. gigatoken remembers words, and text that comes
again flatters it: benchmarks/tokenizer.py compares the two without that.
"""

import os
import tempfile
from itertools import cycle
from pathlib import Path
from time import perf_counter

import pyarrow as pa
import pyarrow.parquet as pq

from common import overnight, save, summary
from overnight.data.documents import stdlib_files

SIZES = (10, 30)  # MB
FAST_SIZES = (40, 120)


def texts(size: int) -> list[str]:
    """Documents of about 1 MB of the standard library's source."""
    files, found, written = cycle(stdlib_files()), [], 0
    while written < size * 1e6:
        text = ""
        while len(text) < 1e6:
            text += next(files).read_text(encoding="utf-8")
        found.append(text)
        written += len(text.encode())
    return found


def write_corpus(folder: Path, size: int, kind: str) -> int:
    """The documents as files or as rows; their bytes of text."""
    folder.mkdir()
    found = texts(size)
    if kind == "text":
        for number, text in enumerate(found):
            (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": found}), folder / "all.parquet", row_group_size=10)
    return sum(len(text.encode()) for text in found)


def rate(root: Path, kind: str, sizes: tuple[int, ...], workers: int, rounds: int = 1) -> dict[str, object]:
    """Seconds at each size, and MB/s between the smallest and the largest."""
    written = {}
    for size in sizes:
        folder = root / f"{kind}{size}"
        written[size] = sum(len(text.encode()) for text in texts(size))
        if not folder.exists():
            write_corpus(folder, size, kind)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            out = Path(tempfile.mkdtemp(dir=root)) / "data"
            began = perf_counter()
            overnight("prepare", f"text:{root / f'{kind}{size}'}", "--out", out, "--workers", workers)
            seconds[size].append(perf_counter() - began)
    medians = {size: summary(found, 1.0)["median"] for size, found in seconds.items()}
    small, large = min(sizes), max(sizes)
    return {
        "seconds": {f"{size} MB": median for size, median in medians.items()},
        "mb_per_second": round(
            (written[large] - written[small]) / (medians[large] - medians[small]) / 1e6, 2
        ),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        figures = {"gigatoken, text, 1 worker": rate(root, "text", FAST_SIZES, 1)}
        figures["gigatoken, parquet, 1 worker"] = rate(root, "parquet", FAST_SIZES, 1)
        (root / "without").mkdir()
        (root / "without" / "gigatoken.py").write_text("raise ImportError('left out here')")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root / "without"), os.environ.get("PYTHONPATH", "")])
        for kind, workers in (("text", 1), ("parquet", 1), ("text", 2)):
            plural = "worker" if workers == 1 else "workers"
            figures[f"tiktoken, {kind}, {workers} {plural}"] = rate(root, kind, SIZES, workers)
        save("prepare", figures)


if __name__ == "__main__":
    main()
