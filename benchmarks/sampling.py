"""Sampling at GPT-2 124M's shapes beside `transformers.generate` with its cache: same weights, prompts.

    python benchmarks/sampling.py

Weights are random: the time does not depend on them. Both draw greedily, in fp32, in this process, in turn.
"""

import statistics
from time import perf_counter

import torch
import transformers

from common import save
from overnight.config import ModelConfig
from overnight.decode import Sampling
from overnight.generate import generate
from overnight.models.gpt2 import GPT

PROMPT, LENGTH, ROUNDS = 32, 48, 3


def main() -> None:
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=50257)
    ours = GPT(config, 50257).init_weights(1).eval()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    figures: dict[str, object] = {
        "transformers": transformers.__version__,
        "prompt": PROMPT,
        "new_tokens": LENGTH,
    }
    for batch in (1, 8):
        prompt = torch.randint(0, 50257, (batch, PROMPT))

        def run_ours(prompt: torch.Tensor = prompt) -> int:
            return len(list(generate(ours, prompt, LENGTH, Sampling(temperature=0), seed=1)))

        def run_theirs(prompt: torch.Tensor = prompt) -> int:
            with torch.no_grad():
                out = theirs.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=False,
                    use_cache=True,
                    min_new_tokens=LENGTH,
                    max_new_tokens=LENGTH,
                    pad_token_id=50256,
                )
            return out.size(1) - PROMPT

        rates: dict[str, list[float]] = {"overnight": [], "transformers": []}
        for number in range(ROUNDS + 1):
            for name, run in (("overnight", run_ours), ("transformers", run_theirs)):
                began = perf_counter()
                assert run() == LENGTH
                if number:  # the first is to warm up
                    rates[name].append(batch * LENGTH / (perf_counter() - began))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        figures[f"batch {batch}"] = {
            "overnight_tokens_per_second": round(medians["overnight"], 2),
            "transformers_tokens_per_second": round(medians["transformers"], 2),
            "ratio": round(medians["overnight"] / medians["transformers"], 3),
        }
    save("sampling", figures)


if __name__ == "__main__":
    main()
