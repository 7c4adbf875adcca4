"""Text from a model: one token at a time, a KV cache for what came before."""

import codecs
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from overnight.data.tokens import Tokenizer
from overnight.decode import NOT_A_NUMBER, Decoder, Sampling
from overnight.errors import Failure
from overnight.models.networks import Network
from overnight.packing import packed
from overnight.world import Reading


@torch.no_grad()
def generate(
    model: Network,
    prompts: Sequence[Tensor],
    length: int,
    sampling: Sampling,
    seed: int,
    n_ids: int | None = None,
) -> Iterator[list[int]]:
    """Yields the next token of each text, `length` times.

    prompts: (T,) int64 each, of any lengths from 1. Ids are always below model.n_tokens, and below n_ids if
    that is given. Raises Failure where the model's output is not a number.
    """
    n_ids = min(model.n_tokens, n_ids or model.n_tokens)
    was_training = model.training
    model.eval()
    try:
        with packed(model, len(prompts)):
            decoder = Decoder(model, prompts, length, sampling, seed, n_ids)
            unread: deque[Reading] = deque()  # a GPU is busy with the next token while one is read
            for number in range(length):
                unread.append(Reading(decoder.step()))
                while len(unread) > (1 if decoder.static and number + 1 < length else 0):
                    tokens = [int(token) for token in unread.popleft().get()]
                    if NOT_A_NUMBER in tokens:
                        raise Failure("the model's output is not a number: its weights have diverged.")
                    yield tokens
    finally:
        model.train(was_training)


def prompt_ids(tokenizer: Tokenizer, prompt: str, device: torch.device) -> Tensor:
    """A prompt as the model saw texts in training: behind <|endoftext|> if empty, (T,) int64."""
    ids = tokenizer.encode(prompt).tolist() or [tokenizer.eot]
    return torch.tensor(ids, device=device)


def continuations(
    model: Network, tokenizer: Tokenizer, prompts: Sequence[str], length: int, sampling: Sampling, seed: int
) -> Iterator[list[int | None]]:
    """The next id of a text for each prompt, None for those that <|endoftext|> has ended, until all have.

    Raises UserError, at once, for a prompt that the tokenizer cannot encode.
    """
    device = model.wte.weight.device
    encoded = {prompt: prompt_ids(tokenizer, prompt, device) for prompt in dict.fromkeys(prompts)}
    rows = [encoded[prompt] for prompt in prompts]

    def drawn() -> Iterator[list[int | None]]:
        ended = [False] * len(rows)
        for row in generate(model, rows, length, sampling, seed, tokenizer.vocab_size):
            ended = [was or token == tokenizer.eot for was, token in zip(ended, row, strict=True)]
            if all(ended):
                return
            yield [None if over else token for over, token in zip(ended, row, strict=True)]

    return drawn()


def texts(
    model: Network, tokenizer: Tokenizer, prompts: Sequence[str], length: int, sampling: Sampling, seed: int
) -> list[str]:
    """A continuation of each prompt, up to <|endoftext|> or `length` tokens."""
    return collect(tokenizer, continuations(model, tokenizer, prompts, length, sampling, seed), len(prompts))


def collect(tokenizer: Tokenizer, rows: Iterable[list[int | None]], count: int) -> list[str]:
    """The `count` texts of which `continuations` yields the tokens."""
    columns = zip(*rows, strict=True)
    written = [tokenizer.decode(token for token in column if token is not None) for column in columns]
    return written or [""] * count


def stream(
    model: Network, tokenizer: Tokenizer, prompts: Sequence[str], length: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """What to print, as it comes: the first text token by token, then the others, which were written along
    with it. The model's own text: whoever shows it on a terminal makes it `visible`."""
    rest: list[list[int]] = [[] for _ in prompts[1:]]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may be half a character
    rows = continuations(model, tokenizer, prompts, length, sampling, seed)
    yield prompts[0]
    for first, *others in rows:
        if first is not None:
            yield decoder.decode(tokenizer.decode_bytes([first]))
        for ids, token in zip(rest, others, strict=True):
            ids.extend([] if token is None else [token])
    yield decoder.decode(b"", final=True) + "\n"
    for prompt, ids in zip(prompts[1:], rest, strict=True):
        yield "-" * 40 + "\n" + prompt + tokenizer.decode(ids) + "\n"
