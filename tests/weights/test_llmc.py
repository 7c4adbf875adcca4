"""llm.c's files: bit for bit there and back, laid out as its programs expect, damage refused by offset."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from overnight import resolve
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.errors import UserError
from overnight.models.gpt2 import GPT
from overnight.weights import llmc
from overnight.weights.tensors import Weights

SIZES = ModelConfig(n_layer=3, n_head=2, n_embd=8, block_size=16, vocab_size=200)
CPU = torch.device("cpu")


def make(config: ModelConfig = SIZES, n_tokens: int = 200) -> Weights:
    model = GPT(config, n_tokens).init_weights(seed=1)
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=draw)
        for name, parameter in model.named_parameters()
    }
    return Weights(config, tensors, None, n_tokens)


def test_fp32_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weights = make()
    llmc.write(weights, tmp_path / "m.bin", torch.float32)
    found = llmc.read(tmp_path / "m.bin")
    assert found.config == SIZES
    assert found.n_tokens == 200
    assert found.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.tensors.items())
    llmc.write(found, tmp_path / "again.bin", torch.float32)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()


def test_bf16_comes_back_rounded_once(tmp_path: Path) -> None:
    weights = make()
    llmc.write(weights, tmp_path / "m.bin", torch.bfloat16)
    found = llmc.read(tmp_path / "m.bin").tensors
    assert all(
        torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in weights.tensors.items()
    )


def test_the_layout_by_hand(tmp_path: Path) -> None:
    """The header and the place of a tensor, computed from the format's description."""
    weights = make()
    llmc.write(weights, tmp_path / "m.bin", torch.float32)
    content = (tmp_path / "m.bin").read_bytes()
    assert struct.unpack("<8i", content[:32]) == (20240326, 3, 16, 200, 3, 2, 8, 256)
    assert not any(content[32:1024])
    numbers = np.frombuffer(content, "<f4", offset=1024)
    C, L, rows, T = 8, 3, 256, 16
    assert not numbers[200 * C : rows * C].any()  # padding
    at = (rows + T) * C + 2 * L * C  # behind the embeddings and both parts of every ln_1
    for layer in range(L):
        name = f"h.{layer}.attn.c_attn.weight"
        part = numbers[at + layer * 3 * C * C : at + (layer + 1) * 3 * C * C]
        assert np.array_equal(part.reshape(3 * C, C), weights.tensors[name].numpy())
    assert np.array_equal(numbers[-C:], weights.tensors["ln_f.bias"].numpy())
    assert len(numbers) == (rows + T) * C + L * (12 * C * C + 13 * C) + 2 * C


def test_a_model_without_biases_gets_zeros_and_computes_the_same(tmp_path: Path) -> None:
    weights = make(replace(SIZES, bias=False))
    llmc.write(weights, tmp_path / "m.bin", torch.float32)
    found = resolve.load(f"llmc:{tmp_path / 'm.bin'}", CPU)
    ids = torch.arange(16)[None]
    ours = weights.model()
    assert torch.allclose(ours.token_losses(ids, ids), found.model.token_losses(ids, ids), atol=1e-6)


def test_padded_rows_stay_out(tmp_path: Path) -> None:
    padded = make(replace(SIZES, vocab_size=256), n_tokens=200)
    llmc.write(padded, tmp_path / "m.bin", torch.float32)
    assert llmc.read(tmp_path / "m.bin").config.vocab_size == 200


def test_the_exact_gelu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tanh GELU; this model has activation gelu"):
        llmc.write(make(replace(SIZES, activation="gelu")), tmp_path / "m.bin", torch.float32)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 20240520, "no model of llm.c: its magic"),
        (4, 2, r"version 2 \(byte 4\)"),
        (8, 0, r"context is 0 \(byte 8\)"),
        (16, -1, r"layers is -1 \(byte 16\)"),
        (16, 4, r"ends at byte [\d,]+; its header says"),
        (24, 7, "2 heads do not divide width 7"),
    ],
)
def test_a_wrong_header_is_refused_with_the_offset(
    tmp_path: Path, offset: int, value: int, message: str
) -> None:
    llmc.write(make(), tmp_path / "m.bin", torch.float32)
    content = bytearray((tmp_path / "m.bin").read_bytes())
    content[offset : offset + 4] = struct.pack("<i", value)
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        llmc.read(tmp_path / "m.bin")


@pytest.mark.parametrize("size", [0, 10, 1023, 1024, 5000, -1])
def test_a_truncated_file_is_refused_with_the_offset(tmp_path: Path, size: int) -> None:
    llmc.write(make(), tmp_path / "m.bin", torch.float32)
    (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:size])
    with pytest.raises(UserError, match=r"at byte [\d,]+"):
        llmc.read(tmp_path / "m.bin")


def test_the_tokenizer_file_is_read_back_as_llm_c_reads_it(tmp_path: Path) -> None:
    tokenizer = tokens.gpt2()
    llmc.write_tokenizer(tokenizer, tmp_path / "t.bin")
    content = (tmp_path / "t.bin").read_bytes()
    assert struct.unpack("<4i", content[:16]) == (20240328, 2, 50_257, 50_256)
    pieces, at = [], 1024
    while at < len(content):
        pieces.append(content[at + 1 : at + 1 + content[at]])
        at += 1 + content[at]
    assert pieces == [*tokenizer.id_bytes()[:-1], b"<|endoftext|>"]
