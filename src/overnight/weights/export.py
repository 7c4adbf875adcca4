"""A model in a folder for other people's programs: `transformers` and what builds on it, or llm.c."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from overnight import __version__
from overnight.data.tokens import ENDOFTEXT, BytePairTokenizer, CharTokenizer, Tokenizer, byte_order
from overnight.decode import Sampling
from overnight.errors import Failure, UserError
from overnight.files import aside as aside_of
from overnight.files import parent_problem, remove_stale, sync, to_json, write_synced
from overnight.generate import generate
from overnight.models.networks import Network
from overnight.visible import markdown_text
from overnight.weights import hf, llmc
from overnight.weights.tensors import Weights, with_biases

TOLERANCE = 1e-4  # largest difference of a logit
LLMC_MODEL, LLMC_BF16, LLMC_TOKENIZER = "gpt2_124M.bin", "gpt2_124M_bf16.bin", "gpt2_tokenizer.bin"


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder to write into that becomes `out` at the end; on any error nothing is left."""
    if problem := parent_problem(out):
        raise UserError(problem)
    if out.is_symlink():
        raise UserError(f"{out} is a symbolic link: choose another --out, or remove it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose another --out, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(out)
    aside.mkdir()
    remove_stale(out, aside.stat().st_mtime)
    try:
        yield aside
        for path in aside.iterdir():
            sync(path)
        if out.is_dir():
            out.rmdir()
        os.rename(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def to_llmc(weights: Weights, tokenizer: Tokenizer, out: Path) -> None:
    """The files that llm.c's programs open, under the names that they open: the model in fp32 and in bf16,
    and the tokenizer."""
    with new_folder(out) as folder:
        llmc.write(weights, folder / LLMC_MODEL, torch.float32)
        llmc.write(weights, folder / LLMC_BF16, torch.bfloat16)
        llmc.write_tokenizer(tokenizer, folder / LLMC_TOKENIZER)


def to_hf(
    weights: Weights,
    tokenizer: Tokenizer,
    out: Path,
    card: str,
    transformers: Callable[[], Any],
) -> float | None:
    """A folder for `AutoModelForCausalLM` and `AutoTokenizer`. Returns the largest difference between their
    logits and ours, None where `transformers()` (import_transformers, or who waits for it) gives no class;
    raises Failure, leaving nothing, if it is more than rounding or the greedy texts differ."""
    used = min(weights.n_tokens, tokenizer.vocab_size)
    with new_folder(out) as folder:
        tensors = {
            f"transformer.{name}": tensor.t().contiguous() if hf.TRANSPOSED.search(name) else tensor
            for name, tensor in with_biases(weights.tensors, weights.config).items()
        }
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:used].clone()
        save(tensors, folder / hf.SINGLE)
        write_json(folder / hf.CONFIG, config_of(weights, used, tokenizer.eot))
        write_json(
            folder / "generation_config.json", {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
        )
        their_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": weights.config.block_size,
                "clean_up_tokenization_spaces": False,
                **dict.fromkeys(("bos_token", "eos_token", "unk_token"), ENDOFTEXT),
            },
        )
        write_json(folder / hf.TOKENIZER, tokenizer.to_json())
        write_synced(folder / "README.md", card)
        ours = sample_of(weights.model(), used)
        model_class = transformers()
        return None if model_class is None else compare(model_class.from_pretrained(folder), *ours)


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write safetensors. Raises OSError where the disk does not take them: the library has an error of its
    own, with the number in its text."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if not (number := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_json(path: Path, value: Any) -> None:
    write_synced(path, to_json(value))


def config_of(weights: Weights, vocab_size: int, eot: int) -> dict[str, Any]:
    """transformers' GPT2Config."""
    config = weights.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        **hf.FIXED,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_inner": None,
        "vocab_size": vocab_size,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "use_cache": True,
        "dtype": "float32",
    }


def their_tokenizer(tokenizer: Tokenizer) -> Any:
    """The same tokenizer as a `tokenizers.Tokenizer`: equal ids for equal text."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Theirs

    if isinstance(tokenizer, BytePairTokenizer):
        # They write bytes as characters that can be seen: GPT-2's stand-ins.
        seen = {byte: chr(byte if i < 188 else 256 + i - 188) for i, byte in enumerate(byte_order())}
        pieces = ["".join(seen[byte] for byte in piece) for piece in tokenizer.id_bytes()[:-1]]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        merges = [(pieces[left], pieces[right]) for left, right in tokenizer.merges.tolist()]
        theirs = Theirs(models.BPE(vocab=vocabulary | {ENDOFTEXT: tokenizer.eot}, merges=merges))
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        theirs.decoder = decoders.ByteLevel()
    else:
        assert isinstance(tokenizer, CharTokenizer)
        vocabulary = {character: i for i, character in enumerate(tokenizer.characters)}
        theirs = Theirs(models.WordLevel(vocabulary | {ENDOFTEXT: tokenizer.eot}, unk_token=ENDOFTEXT))
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        theirs.decoder = decoders.Fuse()
    theirs.add_special_tokens([AddedToken(ENDOFTEXT, special=True, normalized=False)])
    return theirs


def import_transformers() -> Any:
    """transformers' model class; None where it cannot be imported. Not to be called in two threads at once:
    one would see what the other has not finished."""
    try:
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        return None
    logging.disable_progress_bar()
    return GPT2LMHeadModel


@torch.no_grad()
def sample_of(ours: Network, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A few random tokens that the model goes on with greedily, (1, n) ids, and the logits of all of them."""
    length = min(16, ours.config.block_size)
    begin = max(1, length // 2)
    prompt = torch.randint(n_tokens, (1, begin), generator=torch.Generator().manual_seed(1))
    text = list(generate(ours, list(prompt), length - begin, Sampling(0.0), 0, n_tokens))
    ids = torch.cat([prompt, torch.tensor(text).T], 1)
    return ids, ours.logits(ours.hidden(ids))[..., :n_tokens]


@torch.no_grad()
def compare(theirs: Any, ids: torch.Tensor, logits: torch.Tensor) -> float:
    """The largest difference of a logit between a model of transformers and ours (`sample_of`)."""
    found = theirs.eval()(ids).logits
    difference = (logits - found).abs().max().item()
    if not difference <= TOLERANCE:
        raise Failure(f"transformers' logits differ from ours by {difference:.2g}: the export is wrong.")
    begin = max(1, ids.size(1) // 2)
    if not torch.equal(found[:, begin - 1 : -1].argmax(-1), ids[:, begin:]):
        raise Failure("transformers goes on with another greedy text than ours: the export is wrong.")
    return difference


def model_card(origin: str, weights: Weights, facts: dict[str, str]) -> str:
    """README.md: what the model is, what it measured, how to load it. `facts`: what is known of its run."""
    config = weights.config
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {markdown_text(origin)}",
        "",
        f"A GPT-2 of {config.n_layer} layers, {config.n_head} heads, width {config.n_embd} and context "
        f"{config.block_size}, exported by Overnight {__version__}.",
        "",
        *([f"| {name} | {value} |" for name, value in facts.items()]),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        "```",
        "",
        f"Texts were separated by `{ENDOFTEXT}` in training: begin a new text with it.",
        "",
    ]
    if facts:
        lines[9:9] = ["| | |", "| --- | --- |"]
    return "\n".join(lines)
