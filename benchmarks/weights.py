"""Seconds from a folder of 124M weights to logits, and from it to an export, beyond importing torch.

    python benchmarks/weights.py

The weights are random. Each figure is the median of processes that ran in turn, less the median of a process
that only imports torch.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from common import overnight, save, summary
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.models.gpt2 import GPT
from overnight.weights import export
from overnight.weights.tensors import Weights

ROUNDS = 2
LOGITS = """
import sys, torch
from overnight import resolve
model = resolve.load(f"hf:{sys.argv[1]}", torch.device("cpu")).model
with torch.no_grad():
    print(model.logits(model.hidden(torch.arange(16)[None])).sum().item())
"""


def python(program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root, tokenizer = Path(name), tokens.gpt2()
        config = ModelConfig(vocab_size=tokenizer.vocab_size)
        model = GPT(config, tokenizer.vocab_size).init_weights(1)
        folder = root / "gpt2"
        export.to_hf(
            Weights(config, dict(model.state_dict()), tokenizer, tokenizer.vocab_size),
            tokenizer, folder, "", lambda: None,
        )  # fmt: skip
        without = root / "without"
        without.mkdir()
        (without / "transformers.py").write_text("raise ImportError('left out here')")
        blocked = f"import sys; sys.path.insert(0, {str(without)!r}); from overnight.cli import main; main()"
        out = root / "out"
        work = {
            "import torch": lambda: python("import torch"),
            "import torch and transformers": lambda: python(
                "import torch\nfrom transformers import GPT2LMHeadModel"
            ),
            "logits": lambda: python(LOGITS, folder),
            "export to llmc": lambda: overnight("export", f"hf:{folder}", "--to", "llmc", "--out", out),
            "export to hf, checked": lambda: overnight("export", f"hf:{folder}", "--to", "hf", "--out", out),
            "export to hf, without transformers": lambda: python(
                blocked, "export", f"hf:{folder}", "--to", "hf", "--out", out
            ),
        }
        seconds: dict[str, list[float]] = {what: [] for what in work}
        for _ in range(ROUNDS):
            for what, run in work.items():
                began = perf_counter()
                run()
                seconds[what].append(perf_counter() - began)
                shutil.rmtree(out, ignore_errors=True)
                os.sync()  # one run's files are not to be written in the next one's time
        medians = {what: summary(found, 1.0)["median"] for what, found in seconds.items()}
        base = medians["import torch"]
        save(
            "weights",
            {
                "seconds": medians,
                "beyond_importing_torch": {what: round(took - base, 2) for what, took in medians.items()},
                "threads": torch.get_num_threads(),
            },
        )


if __name__ == "__main__":
    main()
