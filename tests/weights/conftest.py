"""Small models of other people's making."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def theirs() -> Callable[..., GPT2LMHeadModel]:
    """`theirs(n_positions=16)`: a random GPT-2 of transformers, 2 layers, 2 heads, width 8, 50,257 ids."""

    def make(**changes: object) -> GPT2LMHeadModel:
        torch.manual_seed(1)
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 50_257}
        model = GPT2LMHeadModel(GPT2Config(**(sizes | changes))).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and gains that matter
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def hf_folder(theirs: Callable[..., GPT2LMHeadModel], tmp_path: Path) -> Path:
    """A folder that transformers saved."""
    theirs().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"
