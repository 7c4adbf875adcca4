"""All CPU benchmarks whose figures the README shows, one after the other (`make bench`).

python benchmarks/run.py [tinyshakespeare.txt]     the Shakespeare run needs its text
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(*text: str) -> None:
    names = ["step", "sampling", "prepare", "quickstart"]
    for name in names + (["shakespeare"] if text else []):
        print(f"== {name}", flush=True)
        arguments = text if name == "shakespeare" else ()
        subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
