"""GPT-2 as `transformers` keeps it: a folder, or a repository on the hub, with config.json and safetensors.

Their linear layers are Conv1D, stored (in, out); ours are (out, in). Older files have no `transformer.`
before the names, and buffers among the tensors.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overnight import safetensors_header
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.errors import UserError
from overnight.files import read_json, reason
from overnight.hub import NoSuchFile, fetch
from overnight.visible import as_json
from overnight.weights.tensors import LARGEST, Weights, check

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "overnight_tokenizer.json"  # ours, beside theirs, in folders that `export` made
GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
TRANSPOSED = re.compile(r"(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
DTYPES = ("F64", "F32", "F16", "BF16")
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# What our model computes, and transformers takes for granted when a config does not say.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def find(name: str) -> tuple[Path, str]:
    """The folder that `hf:NAME` means, and the name to record: pinned to the commit for the hub.

    NAME is a folder, one of GPT-2's sizes, or USER/REPOSITORY; the last two may have @REVISION.
    """
    if name and Path(name).is_dir():
        return Path(name), name
    repository, _, revision = name.partition("@")
    if repository not in GPT2 and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(
            f"hf:{name}: no folder of that name, and no repository: give a folder of safetensors, "
            f"{', '.join(GPT2)}, or USER/REPOSITORY."
        )
    config = fetch(repository, CONFIG, revision or None)
    at = config.parent.name  # the cache keeps a commit's files in a folder of its name
    try:
        fetch(repository, SINGLE, at)
    except NoSuchFile:
        for shard in sorted(set(weight_map(index_of(repository, at)).values())):
            fetch(repository, shard, at)
    return config.parent, f"{repository}@{at}"


def index_of(repository: str, revision: str) -> Path:
    """The index of a repository with several files of weights."""
    try:
        return fetch(repository, INDEX, revision)
    except NoSuchFile:
        raise UserError(
            f"hf:{repository} has no safetensors (no {SINGLE}); pickled weights are never loaded."
        ) from None


def read(folder: Path) -> Weights:
    """The weights in a folder. Raises UserError for what is not a GPT-2, naming the field or tensor."""
    described = read_json(folder / CONFIG, "config")
    config = model_config(described, folder / CONFIG)
    tensors: dict[str, Tensor] = {}
    for path, wanted in files(folder):
        for name, tensor in load(path, wanted).items():
            ours = name.removeprefix("transformer.")
            if ours in tensors:
                raise UserError(f"{path} holds {name} a second time.")
            transposed = TRANSPOSED.search(ours) and tensor.dim() == 2  # other shapes are refused below
            tensors[ours] = tensor.t().contiguous() if transposed else tensor
    head = tensors.pop("lm_head.weight", None)
    check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, folder)
    if head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise UserError(f"{folder}: lm_head.weight is not wte.weight; GPT-2's head is its token embedding.")
    assert isinstance(config.vocab_size, int)
    return Weights(config, tensors, tokenizer(folder, config.vocab_size), config.vocab_size)


def model_config(described: dict[str, Any], path: Path) -> ModelConfig:
    """transformers' GPT2Config as ours; refused where it describes another computation."""
    wrong = [
        f"{name} is {as_json(described.get(name))}, not {as_json(value)}"
        for name, value in FIXED.items()
        if described.get(name, None if name == "model_type" else value) != value
    ]
    activation = described.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        wrong.append(f"activation_function is {as_json(activation)}, not one of {', '.join(ACTIVATIONS)}")
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50_257}
    for name, usual in sizes.items():
        value = described.get(name, described.get("n_ctx", usual) if name == "n_positions" else usual)
        if type(value) is not int or not 1 <= value <= LARGEST[name == "n_layer"]:
            wrong.append(f"{name} is {as_json(value)}, not a size")
        sizes[name] = value
    inner = described.get("n_inner")
    if not wrong and inner not in (None, 4 * sizes["n_embd"]):
        wrong.append(f"n_inner is {as_json(inner)}, not 4 x n_embd")
    if not wrong and sizes["n_embd"] % sizes["n_head"]:
        wrong.append(f"n_head {sizes['n_head']} does not divide n_embd {sizes['n_embd']}")
    if wrong:
        raise UserError(f"{path} is not a GPT-2 that Overnight computes: {'; '.join(wrong[:3])}.")
    return ModelConfig(
        n_layer=sizes["n_layer"],
        n_head=sizes["n_head"],
        n_embd=sizes["n_embd"],
        block_size=sizes["n_positions"],
        vocab_size=sizes["vocab_size"],
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
    )


def tokenizer(folder: Path, vocab_size: int) -> tokens.Tokenizer | None:
    """Ours where `export` put it; GPT-2's for GPT-2's vocabulary; else none."""
    if (folder / TOKENIZER).is_file():
        found = tokens.load(folder / TOKENIZER)
        if found.vocab_size != vocab_size:
            raise UserError(f"{folder / TOKENIZER} has {found.vocab_size} ids, the model {vocab_size}.")
        return found
    gpt2 = tokens.gpt2()
    return gpt2 if vocab_size == gpt2.vocab_size else None


def files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The safetensors files of a folder, each with the tensors that the index expects in it."""
    if (folder / SINGLE).is_file():
        return [(folder / SINGLE, None)]
    if not (folder / INDEX).is_file():
        pickled = (
            " Pickled weights (.bin) are never loaded: convert them." if any(folder.glob("*.bin")) else ""
        )
        raise UserError(f"{folder} has no {SINGLE} (nor an index of several).{pickled}")
    by_file: dict[str, set[str]] = {}
    for name, file in weight_map(folder / INDEX).items():
        by_file.setdefault(file, set()).add(name)
    return [(folder / file, names) for file, names in sorted(by_file.items())]


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file of a sharded model."""
    found = read_json(index, "index").get("weight_map")
    fits = isinstance(found, dict) and all(
        isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) for file in found.values()
    )
    if not fits or not found:
        raise UserError(f"{index} is damaged: its weight_map does not name .safetensors files beside it.")
    if len(found) > safetensors_header.MOST_TENSORS:
        raise UserError(f"{index} is damaged: it names {len(found):,} tensors, more than any model has.")
    assert isinstance(found, dict)
    return found


def load(path: Path, wanted: set[str] | None) -> dict[str, Tensor]:
    """The tensors of one safetensors file, in fp32, without buffers."""
    if not path.is_file():
        raise UserError(f"{path} is missing, though the index names it.")
    try:
        if problem := safetensors_header.problem(path):
            raise UserError(f"{path} is damaged: {problem}.")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            used = [name for name in names if not BUFFERS.search(name)]
            if problem := safetensors_header.wrong_dtype(file, used, DTYPES):
                raise UserError(f"{path}: {problem}.")
            found = {name: file.get_tensor(name).float() for name in used}
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}.") from None
    if wanted is not None and (missing := sorted(wanted - set(names))):
        raise UserError(f"{path} has no tensor {missing[0]}, though the index says so.")
    return found
