"""nanoGPT's ckpt.pt: a dictionary as torch.save writes it, read without loading its pickle.

nanoGPT computes the exact GELU and may have no biases; a compiled model's names begin with `_orig_mod.`. Of
a vocabulary padded to 50,304 it uses every row in its loss, so all rows are in use here too.
"""

import re
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.errors import UserError
from overnight.weights.tensors import LARGEST, Weights, check
from overnight.weights.torch_file import Stored, TorchFile

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
LONGEST_NAME = 200  # characters; a name of nanoGPT's has under 60
GPT2_ROWS = (50_257, 50_304)
MASK = re.compile(r"\.attn\.bias$")  # a buffer, of (1, 1, T, T), where torch had no fused attention


def read(path: Path) -> Weights:
    """The weights of a checkpoint. Raises UserError for what is none, naming the field or tensor."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    tensors: dict[str, Tensor] = {}
    with TorchFile(path) as file:
        config = model_config(file.saved, path)
        room = path.stat().st_size
        for name, stored in file.saved["model"].items():
            numbers = isinstance(stored, Stored) and stored.dtype.is_floating_point
            if not isinstance(name, str) or len(name) > LONGEST_NAME or not numbers:
                raise UserError(f"{path}: {reprlib.repr(name)} in its model is no tensor of floating point.")
            # A view can claim any size of a small storage, and would be copied out to it.
            room -= 0 if name.endswith("lm_head.weight") else stored.n_bytes
            if room < 0:
                raise UserError(f"{path} is damaged: {name} is larger than the file.")
            ours = name.removeprefix("_orig_mod.").removeprefix("transformer.")
            if not MASK.search(ours):
                tensors[ours] = file.tensor(name, stored).float().contiguous()
    head = tensors.pop("lm_head.weight", None)
    check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, path)
    if head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise UserError(f"{path}: lm_head.weight is not transformer.wte.weight: it is no nanoGPT.")
    assert isinstance(config.vocab_size, int)
    gpt2 = tokens.gpt2() if config.vocab_size in GPT2_ROWS else None
    return Weights(config, tensors, gpt2, config.vocab_size)


def model_config(saved: Any, path: Path) -> ModelConfig:
    """model_args as ours."""
    parts = saved if isinstance(saved, dict) else {}
    if not isinstance(parts.get("model"), dict) or not isinstance(parts.get("model_args"), dict):
        raise UserError(f"{path} is no checkpoint of nanoGPT: it has no model and model_args.")
    args = parts["model_args"]
    for name in SIZES:
        if type(args.get(name)) is not int or not 1 <= args[name] <= LARGEST[name == "n_layer"]:
            raise UserError(f"{path}: model_args has {name} {reprlib.repr(args.get(name))}, not a size.")
    if args["n_embd"] % args["n_head"]:
        raise UserError(f"{path}: n_head {args['n_head']} does not divide n_embd {args['n_embd']}.")
    if type(args.get("bias", True)) is not bool:
        raise UserError(f"{path}: model_args has bias {reprlib.repr(args['bias'])}, not True or False.")
    return ModelConfig(**{name: args[name] for name in SIZES}, bias=args.get("bias", True), activation="gelu")
