"""Text from a model: one token at a time, a KV cache for what came before."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from overnight.data.tokens import Tokenizer
from overnight.errors import Failure
from overnight.models.gpt2 import GPT, KVCache
from overnight.models.linear import compute_dtype
from overnight.packing import packed
from overnight.terminal import visible

COLDEST = 1e-5  # temperatures below are 0: dividing by them leaves fp32's range


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al., 2020); 1: all."""


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token from each row of fp32 logits, (B, V) -> (B,) int64."""
    if sampling.temperature < COLDEST:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        smallest = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest, -float("inf"))
    probabilities = logits.softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise Failure("the model's output is not a number: its weights have diverged.")
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier ones
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: GPT, prompt: Tensor, length: int, sampling: Sampling, seed: int, n_ids: int | None = None
) -> Iterator[Tensor]:
    """Yields the next token of each row, (B,) int64, up to `length` times.

    prompt: (B, T) int64, T >= 1; of a prompt longer than block_size its end counts. Ids are always below
    model.n_tokens, and below n_ids if that is given. When the positions run out, the second half of the
    context is read again from position 0 and generation goes on: GPT-2's positions are absolute, so no cache
    survives a shift.
    """
    block_size = model.config.block_size
    generator = torch.Generator(prompt.device).manual_seed(seed)
    device, rows = prompt.device, prompt.size(0)
    n_ids = min(model.n_tokens, n_ids or model.n_tokens)
    was_training = model.training
    model.eval()
    try:
        with packed(model, rows):
            window, cache, fresh = prompt[:, -block_size:], None, prompt[:, -block_size:]
            for _ in range(length):
                if cache is None or cache.used == cache.length:
                    room = min(block_size, window.size(1) + length)
                    if cache is not None:
                        window = fresh = window[:, -max(1, block_size // 2) :]
                    cache = KVCache(model.config, rows, room, device, compute_dtype(device))
                logits = model.logits(model.hidden(fresh, cache)[:, -1]).float()  # (B, V)
                fresh = draw(logits[:, :n_ids], sampling, generator)[:, None]  # (B, 1)
                window = torch.cat([window, fresh], dim=1)[:, -block_size:]
                yield fresh[:, 0]
    finally:
        model.train(was_training)


def prompt_ids(tokenizer: Tokenizer, prompt: str, device: torch.device) -> Tensor:
    """A prompt as the model saw texts in training: behind <|endoftext|> if empty, (1, T) int64."""
    ids = tokenizer.encode(prompt).tolist() or [tokenizer.eot]
    return torch.tensor([ids], device=device)


def continuations(
    model: GPT, tokenizer: Tokenizer, prompt: str, count: int, length: int, sampling: Sampling, seed: int
) -> Iterator[list[int | None]]:
    """The next id of each of `count` texts, None for those that <|endoftext|> has ended, until all have.

    Raises UserError, at once, for a prompt that the tokenizer cannot encode.
    """
    ids = prompt_ids(tokenizer, prompt, model.wte.weight.device).expand(count, -1)

    def rows() -> Iterator[list[int | None]]:
        ended = [False] * count
        for drawn in generate(model, ids, length, sampling, seed, tokenizer.vocab_size):
            row = drawn.tolist()
            ended = [was or token == tokenizer.eot for was, token in zip(ended, row, strict=True)]
            if all(ended):
                return
            yield [None if over else token for over, token in zip(ended, row, strict=True)]

    return rows()


def texts(
    model: GPT, tokenizer: Tokenizer, prompt: str, count: int, length: int, sampling: Sampling, seed: int
) -> list[str]:
    """`count` continuations of a prompt, each up to <|endoftext|> or `length` tokens."""
    rows = continuations(model, tokenizer, prompt, count, length, sampling, seed)
    columns = zip(*rows, strict=True)
    written = [tokenizer.decode(token for token in column if token is not None) for column in columns]
    return written or [""] * count


def stream(
    model: GPT, tokenizer: Tokenizer, prompt: str, count: int, length: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """What to print, as it comes: the first text token by token, then the others, which were written along
    with it. Safe for a terminal: control characters are made visible."""
    rest: list[list[int]] = [[] for _ in range(count)]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may be half a character
    rows = continuations(model, tokenizer, prompt, count, length, sampling, seed)
    yield visible(prompt)
    for first, *others in rows:
        if first is not None:
            yield visible(decoder.decode(tokenizer.decode_bytes([first])))
        for ids, token in zip(rest[1:], others, strict=True):
            ids.extend([] if token is None else [token])
    yield visible(decoder.decode(b"", final=True)) + "\n"
    for ids in rest[1:]:
        yield "-" * 40 + "\n" + visible(prompt + tokenizer.decode(ids)) + "\n"
