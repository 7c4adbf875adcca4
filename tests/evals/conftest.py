"""Questions of our own making, and a model whose opinions are strong."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.models.networks import Network, build

WORDS = "the man a dog on roof is then puts [title] [substeps] it off, and walks away. slowly's car".split()


SIZES = (2, 2, 16, 64, 50_304)
CONFIGS = {
    "gpt2": ModelConfig(*SIZES),
    "modern": ModelConfig(*SIZES, architecture="modern", bias=False, activation="relu2"),
}


@pytest.fixture(scope="session")
def opinionated(request: pytest.FixtureRequest) -> Network:
    """A random network with GPT-2's vocabulary whose scores differ from ending to ending: GPT-2, unless a
    test asks for another (indirectly)."""
    config = CONFIGS[getattr(request, "param", "gpt2")]
    model = build(config, 50_257).init_weights(seed=1).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.fixture(scope="session")
def tokenizer() -> tokens.Tokenizer:
    return tokens.gpt2()


def question(draw: random.Random) -> dict[str, Any]:
    """One line of hellaswag_val.jsonl, of random words."""

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    ctx_a, ctx_b = words(3, 20), words(0, 3)
    return {
        "ind": draw.randint(0, 99),
        "activity_label": words(1, 3),
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}".strip(),
        "split": "val",
        "endings": [words(1, 15) for _ in range(4)],
        "label": draw.choice([draw.randint(0, 3), str(draw.randint(0, 3))]),
    }


@pytest.fixture(scope="session")
def hellaswag_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions."""
    draw = random.Random(5)
    path = tmp_path_factory.mktemp("hellaswag") / "hellaswag_val.jsonl"
    path.write_text("".join(json.dumps(question(draw)) + "\n" for _ in range(60)))
    return path
