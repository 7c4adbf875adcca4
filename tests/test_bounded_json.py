"""JSON, tokenizers and headers of tensors from outside: memory and time in proportion to the file."""

import json
import struct
import sys
from pathlib import Path

import pytest

from overnight import bounded_json, checkpoint, safetensors_header, saved
from overnight.data import tokens
from overnight.data.readers import read_file
from overnight.errors import UserError
from overnight.files import read_json
from overnight.weights import hf

MANY = b"[],"  # 3 bytes, and 64 of memory


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """json.loads must not be called."""

    def refuse(content: bytes) -> None:
        raise AssertionError(f"{len(content):,} bytes are parsed")

    monkeypatch.setattr(json, "loads", refuse)


@pytest.mark.parametrize("content", [b"[" + MANY * 600 + b"0]", b"{" + b'"a":0,' * 1001, b"[" * 1001])
def test_a_text_of_too_many_values_is_not_parsed(content: bytes, unparsed: None) -> None:
    with pytest.raises(bounded_json.TooManyValues, match="over 1,000 values"):
        bounded_json.parse(content, 1000)


@pytest.mark.parametrize("text", [",[{" * 5000, '\\",' * 5000, "\\" * 4999, "a"])
def test_commas_inside_strings_are_no_values(text: str) -> None:
    assert bounded_json.parse(json.dumps([text, 1]).encode(), 1000) == [text, 1]


def test_damaged_strings_are_read_once() -> None:
    """A string that nothing closes is not searched again from each quotation mark in it: that took hours."""
    with pytest.raises(ValueError, match="Unterminated"):
        bounded_json.parse(b'"' + b'\\",' * 2_000_000)


def test_a_file_of_too_many_values_is_refused(tmp_path: Path, unparsed: None) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": [' + MANY * 2_500_000 + b"0]}")
    with pytest.raises(UserError, match=r"config\.json is damaged: it has over 4,194,304 values"):
        read_json(path, "config")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "b": [' + MANY * 1_000_000 + b"0]}")
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: it has over 1,048,576 values"):
        list(read_file(path))


def test_a_state_of_too_many_values_is_a_damaged_checkpoint(tmp_path: Path, unparsed: None) -> None:
    (tmp_path / saved.STATE).write_bytes(b'{"a": [' + MANY * 2_500_000 + b"0]}")
    with pytest.raises(saved.Damaged, match="over 4,194,304 values"):
        saved.check(tmp_path)


def test_the_largest_tokenizer_of_ours_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    merges = [[1_000_000, 1_000_000]] * tokens.MOST_MERGES
    path.write_text(json.dumps({"kind": "bpe", "merges": merges}, separators=(",", ":")))
    assert len(read_json(path, "tokenizer")["merges"]) == tokens.MOST_MERGES


def bpe(merges: list[list[int]]) -> dict:
    return {"kind": "bpe", "vocab_size": 257 + len(merges), "eot": 256 + len(merges), "merges": merges}


def test_a_tokenizer_of_long_tokens_is_refused() -> None:
    """With tokens of 1 MB, a sample of a thousand took gigabytes."""
    doubled = [[0, 0], *([number, number] for number in range(256, 256 + 13))]
    assert max(map(len, tokens.from_json(bpe(doubled), "x").id_bytes())) == tokens.LONGEST_TOKEN
    with pytest.raises(UserError, match="a token has over 16,384 bytes"):
        tokens.from_json(bpe([*doubled, [269, 1]]), "x")


def test_a_tokenizer_of_more_merges_than_we_make_is_refused() -> None:
    with pytest.raises(UserError, match="1,048,577 merges, over 1,048,576"):
        tokens.from_json(bpe([[0, 0]] * (tokens.MOST_MERGES + 1)), "x")


@pytest.mark.parametrize("filler", ["a", " "])
def test_merges_are_learnt_from_parts_of_long_runs(filler: str) -> None:
    n = tokens.LONGEST_WORD
    text = filler * (2 * n + 5) + "\n" * (filler != " ") + "b"
    assert list(map(len, tokens.short_runs(text))) == [n, n, len(text) - 2 * n]


def test_runs_shorter_than_the_limit_are_searched_once() -> None:
    """From each character, a run was searched to its end: of 50 million characters, for hours."""
    text = ("a" * 999 + " ") * 50_000
    assert list(tokens.short_runs(text)) == [text]


def safetensors(path: Path, header: bytes, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    return path


HEADERS = {
    "large": (b'{"__metadata__":{"a":"' + b"x" * (17 << 20) + b'"}}', "17,825,817 bytes, over 16,777,216"),
    "a shape of millions": (b'{"a":{"shape":[' + b"1," * 5_000_000 + b"1]}}", "over 4,194,304 values"),
    "many tensors": (
        b"{" + b",".join(b'"%x":{"data_offsets":[0,0]}' % number for number in range(100_001)) + b"}",
        "100,001 tensors, over 100,000",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_out_of_proportion_is_refused_before_the_library_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, said = HEADERS[name]
    path = safetensors(tmp_path / "model.safetensors", header)
    monkeypatch.setattr(hf, "safe_open", None)
    monkeypatch.setattr(checkpoint, "load_file", None)
    assert said in safetensors_header.problem(path)
    with pytest.raises(UserError, match=said):
        hf.load(path, None)
    with pytest.raises(UserError, match=said):
        checkpoint.read_tensors(path)


def test_an_index_of_a_million_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"weight_map": {f"{i}": "a.safetensors" for i in range(1_000_000)}}))
    with pytest.raises(UserError, match="it names 1,000,000 tensors"):
        hf.weight_map(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs on Windows")
def test_weights_that_are_a_fifo_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="it is a FIFO"):
        checkpoint.read_tensors(tmp_path / "model.safetensors")
