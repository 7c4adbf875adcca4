"""llm.c's model files: a header of 256 int32, then the tensors in one fixed order, fp32 or bf16.

Source of the format: llm.c, train_gpt2.py (write_model, write_tokenizer).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.files import open_new, open_regular, reason
from overnight.weights.tensors import LARGEST, Weights, shapes, with_biases

HEADER_BYTES = 256 * 4
MODEL_MAGIC, TOKENIZER_MAGIC = 20240326, 20240328
VERSIONS = {3: torch.float32, 5: torch.bfloat16}
PADDING = 128  # llm.c pads the vocabulary to a multiple
FIELDS = ("context", "vocabulary", "layers", "heads", "width", "padded vocabulary")


def order(config: ModelConfig) -> Iterator[str]:
    """Our names in the file's order: each tensor of all layers in a row."""
    names = list(shapes(config))
    layer = [name.removeprefix("h.0.") for name in names if name.startswith("h.0.")]
    yield from ("wte.weight", "wpe.weight")
    for name in layer:
        yield from (f"h.{i}.{name}" for i in range(config.n_layer))
    yield from (name for name in names if name.startswith("ln_f."))


def read(path: Path) -> Weights:
    """The weights in a model file, the padded rows left out; bf16 becomes fp32. Raises UserError with the
    offset of what is wrong."""
    try:
        with open_regular(path) as file:
            start = file.read(HEADER_BYTES)
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}.") from None
    if len(start) < HEADER_BYTES:
        raise UserError(f"{path} is cut short at byte {size:,}, inside its header of {HEADER_BYTES:,}.")
    magic, version, context, ids, layers, heads, width, rows = np.frombuffer(start, "<i4")[:8].tolist()
    if magic != MODEL_MAGIC:
        raise UserError(f"{path} is no model of llm.c: its magic (byte 0) is {magic}, not {MODEL_MAGIC}.")
    if version not in VERSIONS:
        raise UserError(f"{path} has version {version} (byte 4): known are 3 (fp32) and 5 (bf16).")
    fields = (context, ids, layers, heads, width, rows)
    for number, (field, value) in enumerate(zip(FIELDS, fields, strict=True)):
        if not 1 <= value <= LARGEST[field == "layers"]:
            raise UserError(f"{path}: {field} is {value} (byte {8 + 4 * number}).")
    if width % heads or rows < ids:
        raise UserError(
            f"{path}: {heads} heads do not divide width {width}, or {ids} ids exceed {rows} rows."
        )
    dtype = VERSIONS[version]
    numbers = (rows + context) * width + layers * (12 * width * width + 13 * width) + 2 * width
    expected = HEADER_BYTES + numbers * dtype.itemsize
    if size != expected:
        raise UserError(f"{path} ends at byte {size:,}; its header says {expected:,}: it is damaged.")
    padded = ModelConfig(layers, heads, width, context, rows)
    flat = torch.from_file(str(path), size=size // dtype.itemsize, dtype=dtype)[
        HEADER_BYTES // dtype.itemsize :
    ]
    tensors, at, wanted = {}, 0, shapes(padded)
    for name in order(padded):
        count = int(np.prod(wanted[name]))
        tensors[name] = flat[at : at + count].view(wanted[name]).float().clone()
        at += count
    tensors["wte.weight"] = tensors["wte.weight"][:ids].clone()
    gpt2 = tokens.gpt2()
    config = replace(padded, vocab_size=ids)
    return Weights(config, tensors, gpt2 if ids == gpt2.vocab_size else None, ids)


def write(weights: Weights, path: Path, dtype: torch.dtype) -> None:
    """A model file of `weights` in fp32 (version 3) or bf16 (version 5), for llm.c's own programs."""
    config = weights.config
    if config.activation != "gelu_tanh":
        raise UserError(
            f"llm.c computes GPT-2's tanh GELU; this model has activation {config.activation}: "
            "export it --to hf."
        )
    rows = -(-weights.n_tokens // PADDING) * PADDING
    tensors = with_biases(weights.tensors, config)
    tensors["wte.weight"] = pad_rows(tensors["wte.weight"][: weights.n_tokens], rows)
    version = next(version for version, stored in VERSIONS.items() if stored == dtype)
    header = np.zeros(256, dtype="<i4")
    header[:8] = (
        MODEL_MAGIC, version, config.block_size, weights.n_tokens,
        config.n_layer, config.n_head, config.n_embd, rows,
    )  # fmt: skip
    with open_new(path) as file:
        file.write(header.tobytes())
        for name in order(replace(config, bias=True)):
            write_tensor(file, tensors[name].to(dtype))


def pad_rows(matrix: Tensor, rows: int) -> Tensor:
    """`matrix` with rows of zeros behind it, (rows, C)."""
    padded = torch.zeros(rows, matrix.size(1), dtype=matrix.dtype)
    padded[: len(matrix)] = matrix
    return padded


def write_tensor(file: IO[bytes], tensor: Tensor) -> None:
    """The bytes of a tensor as they lie in memory; numpy has no bf16."""
    flat = tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)
    file.write(flat.numpy().data)  # no copy: these are hundreds of megabytes


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """A tokenizer file, with which llm.c's programs print what they generate."""
    pieces = tokenizer.id_bytes()
    pieces[tokenizer.eot] = tokens.ENDOFTEXT.encode()
    too_long = next((piece for piece in pieces if len(piece) > 255), None)
    if too_long is not None:
        raise UserError(f"llm.c's tokenizer file has no room for a token of {len(too_long)} bytes.")
    header = np.zeros(256, dtype="<i4")
    header[:4] = TOKENIZER_MAGIC, 2, tokenizer.vocab_size, tokenizer.eot
    with open_new(path) as file:
        file.write(header.tobytes())
        for piece in pieces:
            file.write(bytes([len(piece)]) + piece)
