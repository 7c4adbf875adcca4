"""nanoGPT's checkpoints: its own loss, whatever wrote the names, and no pickle obeyed."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from overnight import resolve
from overnight.errors import UserError
from overnight.weights import nanogpt

CPU = torch.device("cpu")
ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 65, "dropout": 0.1}


def checkpoint(bias: bool, **args: Any) -> dict[str, Any]:
    """What nanoGPT's train.py saves, with random weights."""
    args = ARGS | {"bias": bias} | args
    C, V, T = args["n_embd"], args["vocab_size"], args["block_size"]
    draw = torch.Generator().manual_seed(3)
    model: dict[str, Tensor] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        model[f"transformer.{name}"] = around + 0.3 * torch.randn(shape, generator=draw)

    add("wte.weight", V, C)
    add("wpe.weight", T, C)
    norms = ["ln_f"]
    for i in range(args["n_layer"]):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        for name, n_out, n_in in (
            ("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C), ("mlp.c_fc", 4 * C, C), ("mlp.c_proj", C, 4 * C)
        ):  # fmt: skip
            add(f"h.{i}.{name}.weight", n_out, n_in)
            if bias:
                add(f"h.{i}.{name}.bias", n_out)
    for name in norms:
        add(f"{name}.weight", C, around=1.0)
        if bias:
            add(f"{name}.bias", C)
    model["lm_head.weight"] = model["transformer.wte.weight"]
    return {
        "model": model,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        "model_args": args,
        "iter_num": 250,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }


def loss_by_definition(saved: dict[str, Any], ids: Tensor, targets: Tensor) -> Tensor:
    """nanoGPT's forward pass written out once more: pre-norm, exact GELU, all rows in the loss."""
    args, w = saved["model_args"], {k.removeprefix("transformer."): v for k, v in saved["model"].items()}
    B, T = ids.shape
    C, H = args["n_embd"], args["n_head"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = w["wte.weight"][ids] + w["wpe.weight"][:T]
    for i in range(args["n_layer"]):
        q, k, v = (
            part.view(B, T, H, C // H).transpose(1, 2)
            for part in linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(C, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // H)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C), f"h.{i}.attn.c_proj")
        h = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        x = x + linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), f"h.{i}.mlp.c_proj")
    logits = norm(x, "ln_f") @ w["lm_head.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("vocab_size", [65, 50_304])
def test_it_scores_what_nanogpt_scores(tmp_path: Path, bias: bool, prefix: str, vocab_size: int) -> None:
    saved = checkpoint(bias, vocab_size=vocab_size)
    draw = torch.Generator().manual_seed(4)
    ids, targets = (torch.randint(65, (3, 8), generator=draw) for _ in range(2))
    expected = loss_by_definition(saved, ids, targets)
    saved["model"] = {prefix + name: tensor for name, tensor in saved["model"].items()}
    torch.save(saved, tmp_path / "ckpt.pt")
    loaded = resolve.load(f"nanogpt:{tmp_path / 'ckpt.pt'}", CPU)
    with torch.no_grad():
        assert loaded.model(ids, targets).item() == pytest.approx(expected.item(), abs=1e-4)
    assert (loaded.tokenizer is None) == (vocab_size == 65)


def test_masks_of_old_versions_of_torch_are_left_out(tmp_path: Path) -> None:
    saved = checkpoint(bias=True)
    saved["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    torch.save(saved, tmp_path / "ckpt.pt")
    assert "h.0.attn.bias" not in nanogpt.read(tmp_path / "ckpt.pt").tensors


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("touched",)


def test_a_malicious_pickle_is_refused_and_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(bias=True) | {"config": Malicious()}, "ckpt.pt")
    with pytest.raises(UserError, match=r"more than tensors and plain data \(it asks for \w+\.mkdir\)"):
        nanogpt.read(Path("ckpt.pt"))
    assert not Path("touched").exists()


@pytest.mark.parametrize("size", [0, 3, 100, 1000, -1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "ckpt.pt"
    torch.save(checkpoint(bias=True), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"is damaged or no checkpoint|more than tensors"):
        nanogpt.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no model and model_args"),
        ({"model_args": ARGS | {"n_layer": "2"}}, "n_layer '2', not a size"),
        ({"model_args": ARGS | {"n_layer": 3}}, r"no tensor h\.2\.ln_1\.weight"),
        ({"model_args": ARGS | {"n_head": 3}}, "n_head 3 does not divide"),
        (
            {"model_args": ARGS | {"bias": False}},
            r"a tensor h\.0\.attn\.c_attn\.bias that",
        ),
        ({"model_args": ARGS | {"block_size": 9}}, r"wpe\.weight has shape \[8, 16\], not \[9, 16\]"),
        ({"model_args": ARGS | {"bias": 1}}, "bias 1, not True or False"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(checkpoint(bias=True) | changes, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=message):
        nanogpt.read(tmp_path / "ckpt.pt")
