"""Readers of other people's weights."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from safetensors.torch import save_file
from tests.fuzz_models import MODEL, random_tensors, tokenizer, use
from tests.fuzzing import Reader
from tests.mutations import binary, json_file, safetensors
from torch import Tensor

from overnight.files import to_json
from overnight.weights import hf, llmc, nanogpt
from overnight.weights.tensors import Weights

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 20}


def make_hf(folder: Path) -> Path:
    """A folder of two files with an index, our tokenizer beside."""
    tensors = {
        f"transformer.{name}": tensor.t().contiguous() if hf.TRANSPOSED.search(name) else tensor
        for name, tensor in random_tensors().items()
    }
    half = len(tensors) // 2
    parts = {"model-1.safetensors": list(tensors)[:half], "model-2.safetensors": list(tensors)[half:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    by_name = {name: file for file, names in parts.items() for name in names}
    (folder / hf.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": by_name}))
    described = hf.FIXED | SIZES | {"activation_function": "gelu_new", "n_inner": None, "n_ctx": 8}
    (folder / hf.CONFIG).write_text(json.dumps(described))
    (folder / hf.TOKENIZER).write_text(to_json(tokenizer().to_json()))
    return folder


def read_hf(path: Path) -> None:
    use(hf.read(path.parent))


def make_llmc(dtype: torch.dtype, folder: Path) -> Path:
    llmc.write(Weights(MODEL, random_tensors(), None, 20), folder / "model.bin", dtype)
    return folder / "model.bin"


def read_llmc(path: Path) -> None:
    use(llmc.read(path))


def nanogpt_checkpoint() -> dict[str, Any]:
    model = {f"_orig_mod.transformer.{name}": tensor for name, tensor in random_tensors().items()}
    model["_orig_mod.lm_head.weight"] = model["_orig_mod.transformer.wte.weight"]
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 20, "bias": True}
    return {"model": model, "model_args": sizes, "iter_num": 1, "best_val_loss": torch.tensor(1.0)}


def make_nanogpt(folder: Path) -> Path:
    torch.save(nanogpt_checkpoint(), folder / "ckpt.pt")
    return folder / "ckpt.pt"


def read_nanogpt(path: Path) -> None:
    use(nanogpt.read(path))


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def other_objects(draw: DrawFn) -> bytes:
    """A checkpoint of torch, sound as such, that says something else."""
    saved = nanogpt_checkpoint()
    values = (
        None, 0, -1, 1, True, 2.5, 10**600, 2**62, "x" * 10**5, [], {}, float("nan"), deep(400), deep(900),
        torch.ones(3), torch.ones(1).expand(2**20, 2**20), torch.ones(8, 8, dtype=torch.int64),
        torch.ones(20, 8).to_sparse(), torch.ones(8, 8, device="meta"), torch.ones(8, 8, dtype=torch.float64),
        torch.ones(8, 24).t(), torch.empty(0), torch.ones(1, 1, 8, 8), torch.ones(20, 8).bfloat16(),
        torch.quantize_per_tensor(torch.ones(8), 1.0, 0, torch.quint8), torch.ones(8, dtype=torch.complex64),
        2**24, torch.ones(1).expand(2**24, 8), torch.nn.Parameter(torch.ones(8)),
    )  # fmt: skip
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([saved, saved.get("model"), saved.get("model_args")]))
        if not isinstance(part, dict) or not part:
            continue
        name = draw(st.sampled_from(sorted(part, key=str)))
        if draw(st.integers(0, 5)):
            part[name] = draw(st.sampled_from(values))
        else:
            keys = (0, None, (1, 2), "x", deep_key(300), "h.0.attn.bias")
            part[draw(st.sampled_from(keys))] = part.pop(name)
    file = io.BytesIO()
    zipped = draw(st.booleans()) or not has_legacy_form(saved)
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def has_legacy_form(saved: dict[Any, Any]) -> bool:
    """The old form of torch's files has no sparse tensors and none without memory."""
    model = saved.get("model")
    values = [*saved.values(), *(model.values() if isinstance(model, dict) else ())]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return all(one.layout == torch.strided and one.device.type == "cpu" for one in tensors)


def deep_key(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


@st.composite
def other_pickle(draw: DrawFn, valid: bytes) -> bytes:
    """The archive in order, with a spoiled pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(valid)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, draw(binary(content)) if name.endswith("/data.pkl") else content)
    return out.getvalue()


def torch_file(valid: bytes) -> SearchStrategy[bytes]:
    legacy = io.BytesIO()
    torch.save(nanogpt_checkpoint(), legacy, _use_new_zipfile_serialization=False)
    return st.one_of(other_objects(), other_pickle(valid), binary(valid), binary(legacy.getvalue(), 2000))


READERS: dict[str, Reader] = {
    "hf-config": Reader(lambda folder: make_hf(folder) / hf.CONFIG, read_hf, json_file),
    "hf-index": Reader(lambda folder: make_hf(folder) / hf.INDEX, read_hf, json_file),
    "hf-weights": Reader(lambda folder: make_hf(folder) / "model-1.safetensors", read_hf, safetensors),
    "hf-tokenizer": Reader(lambda folder: make_hf(folder) / hf.TOKENIZER, read_hf, json_file),
    "llmc-fp32": Reader(lambda f: make_llmc(torch.float32, f), read_llmc, lambda v: binary(v, 32)),
    "llmc-bf16": Reader(lambda f: make_llmc(torch.bfloat16, f), read_llmc, lambda v: binary(v, 32)),
    "nanogpt": Reader(make_nanogpt, read_nanogpt, torch_file),
}
