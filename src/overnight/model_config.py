"""The network's part of a run's config: sizes and choices of architecture, checked."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from overnight.checks import at_least, at_most

Auto = Literal["auto"]


@dataclass(frozen=True)
class ModelConfig:
    """The network (models/gpt2.py, models/modern.py)."""

    architecture: Literal["gpt2", "modern"] = field(default="gpt2", kw_only=True)
    """GPT-2's, or with what has been learnt since."""
    n_layer: int = 12
    """Blocks of attention and MLP."""
    n_head: int = 12
    """Attention heads of a block; divides n_embd. 0: heads of 128 (or one, of less)."""
    n_embd: int = 768
    """Width of the residual stream. 0: 64 a layer, rounded up to heads of 128."""
    block_size: int = 1024
    """Context: tokens of a window, the most that attention sees."""
    vocab_size: int | Auto = "auto"
    """Rows of the embedding; auto: the tokenizer's ids, padded to a multiple of 64 on CUDA."""
    bias: bool = True
    """Biases in linear layers and norms."""
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"
    """GPT-2's tanh approximation, the exact GELU, or ReLU squared (modern)."""
    dropout: float = 0.0
    """Fraction of activations set to 0 in training."""
    attention: Literal["flash", "manual"] = "flash"
    """torch's fused kernel, or the formula spelt out."""
    residual: Literal["low", "fp32"] = "low"
    """Residual stream: as matrix products where those are in bf16; or in fp32 always."""
    logits: Literal["parts", "whole"] = "parts"
    """In training: of some positions at a time, or of the whole micro-batch."""

    def sized(self) -> "ModelConfig":
        """The same, with the width that goes with the depth in the place of 0, and so many heads of 128."""
        n_embd = self.n_embd or 128 * -(-self.n_layer // 2)
        return replace(self, n_embd=n_embd, n_head=self.n_head or max(1, n_embd // 128))

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "model.", 1, "n_layer", "block_size", "vocab_size")
        yield from at_least(self, "model.", 0, "n_head", "n_embd")
        yield from at_most(self, "model.", 1000, "n_layer")
        yield from at_most(self, "model.", 2**24, "n_head", "n_embd", "block_size", "vocab_size")
        n_head, n_embd = self.sized().n_head, self.sized().n_embd
        if self.n_head == 0 and n_embd > 128 and n_embd % 128:
            yield f"model.n-head 0 is heads of 128, and model.n-embd {n_embd} no multiple: give a number."
        elif n_head > 0 and n_embd % n_head:
            fits = [str(n) for n in range(1, min(n_embd, 64) + 1) if n_embd % n == 0]
            yield (
                f"model.n-head {n_head} does not divide model.n-embd {n_embd}: give one of {', '.join(fits)}."
            )
        elif self.architecture == "modern" and min(n_head, n_embd) > 0 and n_embd // n_head % 2:
            yield f"heads of {n_embd // n_head} cannot be turned in pairs: give another model.n-head."
        if not 0 <= self.dropout < 1:
            yield f"model.dropout is {self.dropout}: give 0 or more, less than 1."
        yield from self.architecture_problems()

    def architecture_problems(self) -> Iterator[str]:
        """What this architecture does not have."""
        if self.architecture == "gpt2" and self.activation == "relu2":
            yield "model.activation relu2 is for model.architecture modern: give gelu_tanh or gelu."
        if self.architecture == "modern" and (self.bias or self.activation != "relu2" or self.dropout):
            yield (
                "model.architecture modern has no biases, no dropout, and ReLU squared: give --model.no-bias "
                "--model.dropout 0 --model.activation relu2."
            )
