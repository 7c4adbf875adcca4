"""Both architectures, and which of them a config means."""

from overnight.config import ModelConfig
from overnight.models.gpt2 import GPT
from overnight.models.modern import ModernGPT

Network = GPT | ModernGPT  # what everything else may ask of a model, both have


def build(config: ModelConfig, n_tokens: int) -> Network:
    """The network, without weights yet; `n_tokens`: ids of the tokenizer."""
    return (ModernGPT if config.architecture == "modern" else GPT)(config, n_tokens)
