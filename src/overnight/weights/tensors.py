"""Weights on their way between files and the model: our names, (out, in) matrices, fp32, on the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from overnight.config import ModelConfig
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.models.networks import Network, build

LARGEST = (2**24, 1000)  # of a size, and of a number of layers, in a file that is not damaged
SHOWN = 2  # of the problems of a file; an error has three lines


@dataclass(frozen=True)
class Weights:
    """All of a model."""

    config: ModelConfig
    """vocab_size is the number of rows of wte.weight."""
    tensors: dict[str, Tensor]
    """By our names (checkpoint.py's); see `shapes`."""
    tokenizer: Tokenizer | None
    """None where the file has none and its vocabulary is not GPT-2's."""
    n_tokens: int
    """Rows in use; those behind them are padding."""

    def model(self) -> Network:
        """The model in evaluation mode, on the CPU, made of these very tensors."""
        model = build(self.config, self.n_tokens)
        model.load_state_dict(self.tensors, assign=True)
        return model.eval()

    def fit(self, config: ModelConfig, n_tokens: int) -> dict[str, Tensor]:
        """The tensors for training with `config`: positions beyond its context cropped, the vocabulary
        brought to its size with rows of zeros."""
        assert isinstance(config.vocab_size, int)
        fitted = dict(self.tensors)
        for name in {"wte.weight", "lm_head.weight"} & fitted.keys():
            used = fitted[name][: min(self.n_tokens, n_tokens)]
            fitted[name] = torch.zeros(config.vocab_size, config.n_embd)
            fitted[name][: len(used)] = used
        if "wpe.weight" in fitted:
            fitted["wpe.weight"] = fitted["wpe.weight"][: config.block_size]
        return fitted


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model, in the model's order."""
    assert isinstance(config.vocab_size, int)
    with torch.device("meta"):
        model = build(replace(config, dropout=0.0), config.vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check(found: Mapping[str, tuple[int, ...]], config: ModelConfig, where: object) -> None:
    """Raise UserError if the tensors in a file, by our names, are not those of `config`."""
    sizes = (config.n_embd, config.block_size, config.vocab_size)
    if config.n_layer > LARGEST[1] or any(isinstance(n, int) and n > LARGEST[0] for n in sizes):
        raise UserError(f"{where} cannot hold a model as large as its config says.")
    wanted = shapes(config)
    problems = [f"no tensor {name}" for name in wanted if name not in found]
    problems += [
        f"a tensor {name} that {'GPT-2' if config.architecture == 'gpt2' else 'the model'} does not have"
        for name in found
        if name not in wanted
    ]
    problems += [
        f"{name} has shape {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{where} does not hold the weights of its config: {'; '.join(problems[:SHOWN])}{more}."
        )


def with_biases(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The same model for formats that know GPT-2 only with biases: those missing are zeros."""
    wanted = shapes(replace(config, bias=True))
    return {name: tensors[name] if name in tensors else torch.zeros(shape) for name, shape in wanted.items()}
