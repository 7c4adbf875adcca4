"""All CPU benchmarks whose figures the README shows, one after the other (`make bench`).

python benchmarks/run.py [tinyshakespeare.txt [hellaswag_val.jsonl]]     those two need their files
"""

import subprocess
import sys
from pathlib import Path
from time import monotonic

HERE = Path(__file__).parent


def main(*files: str) -> None:
    names = ("step", "sampling", "weights", "tokenizer", "prepare", "saving", "report", "quickstart")
    runs = [[name] for name in names]
    runs += [list(pair) for pair in zip(("shakespeare", "hellaswag"), files, strict=False)]
    began = monotonic()
    for name, *arguments in runs:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], check=True)
        print(f"== {monotonic() - began:.0f} s so far", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
