"""What keeps a config from training on some data, or from some weights; each problem with its remedy."""

from overnight.config import Config
from overnight.data.manifest import Data
from overnight.errors import UserError
from overnight.resolve import tokenizer_name
from overnight.weights.tensors import Weights


def data_problems(config: Config, data: Data) -> list[str]:
    """What keeps this config from training on this data."""
    problems = []
    vocabulary, rows = data.tokenizer.vocab_size, config.model.vocab_size
    if isinstance(rows, int) and rows < vocabulary:
        problems.append(
            f"model.vocab-size {rows} is smaller than the data's vocabulary of {vocabulary}: "
            f"give {vocabulary} or more, or leave it out."
        )
    for split, least in (("train", config.model.block_size + 1), ("val", 2)):
        if (have := len(data.split(split))) < least:
            problems.append(
                f"{data.folder} has {have} tokens of {split}, fewer than the {least} that model.block-size "
                f"{config.model.block_size} needs: prepare more text."
            )
    try:
        data.tokenizer.encode(config.sample.prompt)
    except UserError as error:
        problems.append(f"sample.prompt: {error}")
    return problems


def donor_problems(config: Config, donor: Weights, data: Data) -> list[str]:
    """What keeps the weights of --init-from from being this model's. A shorter context is fine: the positions
    beyond it are cropped."""
    problems = []
    for name in ("architecture", "n_layer", "n_head", "n_embd", "block_size", "bias", "activation"):
        ours, theirs = getattr(config.model, name), getattr(donor.config, name)
        if ours != theirs and not (name == "block_size" and ours < theirs):
            option = f"model.{name.replace('_', '-')}"
            remedy = (
                f"--model.{'bias' if theirs else 'no-bias'}" if name == "bias" else f"--{option} {theirs}"
            )
            problems.append(f"{config.init_from} has {option} {theirs}, not {ours}: give {remedy}.")
    if donor.tokenizer is None:  # such files may lack <|endoftext|>, the last id; a row of zeros is added
        if not 0 <= data.tokenizer.vocab_size - donor.n_tokens <= 1:
            problems.append(
                f"{config.init_from} has {donor.n_tokens} ids, the data {data.tokenizer.vocab_size}: "
                "prepare the data with the tokenizer that the model was trained with."
            )
    elif donor.tokenizer.sha256 != data.tokenizer.sha256:
        problems.append(
            f"{data.folder} was made with another tokenizer than {config.init_from}'s: "
            f"prepare it with --tokenizer {tokenizer_name(config.init_from, donor.tokenizer)}."
        )
    return problems
