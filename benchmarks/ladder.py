"""`overnight ladder` on this machine, kept among the results.

python benchmarks/ladder.py [options of overnight ladder]
"""

import json
import sys
import tempfile
from pathlib import Path

from common import overnight, save


def main(*options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ladder.json"
        overnight("ladder", "--out", out, *options)
        found = json.loads(out.read_text())
    assert found["complete"]
    for rung in found["rungs"]:
        del rung["step_ms"]
    kept = ("device", "model", "micro_batch", "tokens_per_step", "rungs")
    save("ladder", {name: found[name] for name in kept})


if __name__ == "__main__":
    main(*sys.argv[1:])
