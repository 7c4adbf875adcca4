"""transformers' GPT-2: the same logits in and out, and every wrong file refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from overnight import resolve
from overnight.errors import UserError
from overnight.weights import hf

CPU = torch.device("cpu")
IDS = torch.randint(50_257, (2, 12), generator=torch.Generator().manual_seed(2))


def same_logits(folder: Path, model: Any) -> None:
    ours = resolve.load(f"hf:{folder}", CPU).model
    with torch.no_grad():
        difference = ours.logits(ours.hidden(IDS)) - model(IDS).logits
    assert difference.abs().max() <= 1e-4


@pytest.mark.parametrize("shards", ["50GB", "1MB"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_a_folder_of_transformers_gives_its_logits(
    theirs: Callable[..., Any], tmp_path: Path, shards: str, activation: str
) -> None:
    model = theirs(activation_function=activation)
    model.save_pretrained(tmp_path / "m", max_shard_size=shards)
    assert (tmp_path / "m" / hf.INDEX).is_file() == (shards == "1MB")
    same_logits(tmp_path / "m", model)


def test_older_files_without_the_prefix_and_with_buffers_and_head(
    theirs: Callable[..., Any], tmp_path: Path
) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / hf.SINGLE)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["lm_head.weight"] = old["wte.weight"].clone()
    for i in range(2):
        old[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        old[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / hf.SINGLE)
    same_logits(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_fp32(hf_folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(hf_folder / hf.SINGLE).items()}
    save_file(tensors, hf_folder / hf.SINGLE)
    found = hf.read(hf_folder).tensors
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.equal(found["wpe.weight"], tensors["transformer.wpe.weight"].float())


def test_the_tokenizer_is_gpt2s_only_for_gpt2s_vocabulary(
    hf_folder: Path, theirs: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = hf.read(hf_folder).tokenizer
    assert tokenizer is not None
    assert tokenizer.kind == "gpt2"
    theirs(vocab_size=100).save_pretrained(tmp_path / "small")
    assert hf.read(tmp_path / "small").tokenizer is None


FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "layer_norm_epsilon": 1e-6,
    "activation_function": "relu",
    "scale_attn_by_inverse_layer_idx": True,
    "tie_word_embeddings": False,
    "n_layer": "two",
    "n_embd": 0,
    "n_positions": 2**40,
    "n_inner": 7,
    "n_head": 3,
}


@pytest.mark.parametrize("field", FIELDS)
def test_another_architecture_is_refused_by_its_field(hf_folder: Path, field: str) -> None:
    path = hf_folder / hf.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: FIELDS[field]}))
    with pytest.raises(UserError, match=f"config.json is not a GPT-2 that Overnight computes: .*{field}"):
        hf.read(hf_folder)


@pytest.mark.parametrize(("field", "value"), [("n_layer", 10**9), ("activation_function", ["gelu"])])
def test_absurd_fields_cost_nothing(hf_folder: Path, field: str, value: object) -> None:
    path = hf_folder / hf.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=field):
        hf.read(hf_folder)


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors: dict[str, torch.Tensor] = load_file(folder / hf.SINGLE)
    for name, tensor in changes.items():
        full = f"transformer.{name.replace('__', '.')}"
        if tensor is None:
            del tensors[full]
        else:
            tensors[full] = tensor
    save_file(tensors, folder / hf.SINGLE)


def test_missing_surplus_and_misshapen_tensors_are_refused_by_name(hf_folder: Path) -> None:
    change(hf_folder, h__1__ln_2__bias=None)
    with pytest.raises(UserError, match=r"no tensor h\.1\.ln_2\.bias"):
        hf.read(hf_folder)
    change(hf_folder, h__1__ln_2__bias=torch.zeros(9))
    with pytest.raises(UserError, match=r"h\.1\.ln_2\.bias has shape \[9\], not \[8\]"):
        hf.read(hf_folder)
    change(hf_folder, h__1__ln_2__bias=torch.zeros(8), h__2__ln_2__bias=torch.zeros(8))
    with pytest.raises(UserError, match=r"a tensor h\.2\.ln_2\.bias that GPT-2 does not have"):
        hf.read(hf_folder)


@pytest.mark.parametrize(("dtype", "size"), [("I32", 8), ("C64", 4), ("F8_E4M3", 32), ("F4", 64)])
def test_a_tensor_of_another_dtype_is_refused_by_name(hf_folder: Path, dtype: str, size: int) -> None:
    path = hf_folder / hf.SINGLE
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["transformer.ln_f.bias"] |= {"dtype": dtype, "shape": [size]}  # of the same 32 bytes
    described = json.dumps(header).encode()
    path.write_bytes(len(described).to_bytes(8, "little") + described + content[end:])
    words = rf"transformer\.ln_f\.bias is {dtype}, not F64 or F32 or F16 or BF16\.$"
    with pytest.raises(UserError, match=words):
        hf.read(hf_folder)


def test_an_untied_head_is_refused(hf_folder: Path) -> None:
    tensors = load_file(hf_folder / hf.SINGLE)
    save_file(tensors | {"lm_head.weight": torch.zeros(50_257, 8)}, hf_folder / hf.SINGLE)
    with pytest.raises(UserError, match=r"lm_head\.weight is not wte\.weight"):
        hf.read(hf_folder)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 2000, 100_000, -1])
def test_a_truncated_file_is_refused_with_its_offset(hf_folder: Path, size: int) -> None:
    path = hf_folder / hf.SINGLE
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: .*(byte|claims)"):
        hf.read(hf_folder)


def test_a_file_cut_inside_a_tensor_names_it(hf_folder: Path) -> None:
    path = hf_folder / hf.SINGLE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cut short at byte [\d,]+, inside transformer\.\w+"):
        hf.read(hf_folder)


def test_an_index_cannot_lead_out_of_its_folder(theirs: Callable[..., Any], tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path, max_shard_size="1MB")
    index = json.loads((tmp_path / hf.INDEX).read_text())
    index["weight_map"]["transformer.wpe.weight"] = "../secret.safetensors"
    (tmp_path / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="weight_map does not name"):
        hf.read(tmp_path)
    index["weight_map"]["transformer.wpe.weight"] = "gone.safetensors"
    (tmp_path / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"gone\.safetensors is missing, though the index names it"):
        hf.read(tmp_path)


def test_pickled_weights_are_never_loaded(hf_folder: Path) -> None:
    (hf_folder / hf.SINGLE).rename(hf_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never loaded"):
        hf.read(hf_folder)


@pytest.mark.parametrize("name", ["", "gpt5", "../x y", "a/b/c"])
def test_what_is_no_folder_and_no_repository_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no folder of that name, and no repository"):
        resolve.load(f"hf:{name}", CPU)
