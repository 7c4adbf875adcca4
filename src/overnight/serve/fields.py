"""The fields of `POST /v1/completions`, as OpenAI has them: checked, with the remedy where one is wrong.

https://platform.openai.com/docs/api-reference/completions. `top_k` is ours.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overnight.data.tokens import Tokenizer
from overnight.decode import Sampling
from overnight.errors import UserError, near
from overnight.serve.refusal import Refusal

# Fields that change nothing here unless they ask for something: what they may be.
IDLE = {
    "suffix": (None, ""), "best_of": (None, 1), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}  # fmt: skip
KNOWN = (
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "logprobs", "echo",
    "stream", "stream_options", "user", *IDLE,
)  # fmt: skip


DIGITS = 100  # of a whole number; reading one takes time that grows with their square
MOST_SHOWN = 1_000_000  # characters of prompts to echo times n; a token can stand for a hundred
TOO_MUCH_ECHO = (
    f"echo: the prompts times n have over {MOST_SHOWN:,} characters: send fewer prompts at a time."
)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    tokens: int = 4096
    """max_tokens, at most."""
    texts: int = 32
    """Prompts times n, at most."""
    seconds: float = 600.0
    """For an answer."""
    waiting: int = 256
    """Texts of all requests together, waiting, being written or sent."""
    echo: int = 8 * MOST_SHOWN
    """Characters of prompts to echo times n, of all requests together."""


@dataclass(frozen=True)
class Asked:
    """A request that makes sense."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids, one at least in each; of a long one the last, as many as the model sees."""
    prompt_tokens: int
    """Of all prompts, whole."""
    shown: tuple[str, ...]
    """The prompts as text, for echo."""
    n: int
    max_tokens: int
    sampling: Sampling
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    echo: bool
    stream: bool
    usage: bool
    """Whether a stream tells what it used at its end."""


def read(body: bytes, model: str, tokenizer: Tokenizer, block_size: int, limits: Limits) -> Asked:
    """The bytes of a body -> a request. Raises Refusal."""
    try:
        found = json.loads(body, parse_int=integer)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON.") from None
    return parse(found, model, tokenizer, block_size, limits)


def integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Refusal(400, f"The body contains a number of {len(digits):,} digits: give at most {DIGITS}.")
    return int(digits)


def parse(body: Any, model: str, tokenizer: Tokenizer, block_size: int, limits: Limits) -> Asked:
    """JSON -> a request. Raises Refusal that names the field."""
    if not isinstance(body, dict):
        raise Refusal(400, "The body is no JSON object.")
    for name in body:
        if name not in KNOWN:
            raise wrong(name, f"Unknown field '{name[:50]}'.{near(name[:50], KNOWN)}")
    for name, idle in IDLE.items():
        if body.get(name) not in idle and not (name == "best_of" and body[name] == body.get("n")):
            raise wrong(name, f"{name} is not supported: leave it out.")
    if body.get("model") not in (None, model):
        raise Refusal(
            404, f"There is no such model here: it is called '{model}'.", "model", "model_not_found"
        )
    echo = flag(body, "echo")
    prompts, shown = prompts_of(body.get("prompt"), tokenizer, echo, limits.texts)
    asked = Asked(
        tuple(ids[-block_size:] for ids in prompts), sum(map(len, prompts)), shown,
        n=whole(body, "n", 1, 1, limits.texts),
        max_tokens=whole(body, "max_tokens", 16, 0, limits.tokens),
        sampling=Sampling(
            real(body, "temperature", 1.0, 0.0, 100.0),
            whole(body, "top_k", 0, 0, 2**31),
            real(body, "top_p", 1.0, 0.0, 1.0),
        ),
        seed=None if body.get("seed") is None else whole(body, "seed", 0, -(2**63), 2**63 - 1),
        stop=stops(body.get("stop")),
        logprobs=None if body.get("logprobs") is None else whole(body, "logprobs", 0, 0, 5),
        echo=echo,
        stream=flag(body, "stream"),
        usage=usage_wanted(body.get("stream_options")),
    )  # fmt: skip
    if asked.sampling.top_p == 0:
        raise wrong("top_p", "top_p is 0: give more than 0, at most 1.")
    if asked.n * len(prompts) > limits.texts:
        raise wrong("n", f"{len(prompts)} prompts x n {asked.n}: at most {limits.texts} texts a request.")
    if asked.n * sum(map(len, shown)) > MOST_SHOWN:
        raise wrong("prompt", TOO_MUCH_ECHO)
    if asked.echo and asked.logprobs is not None and max(map(len, prompts)) > block_size:
        told = f"The model sees {block_size:,} tokens: a longer prompt cannot be judged."
        raise Refusal(400, told, "prompt", "context_length_exceeded")
    return asked


def wrong(name: str, message: str) -> Refusal:
    return Refusal(400, message, name[:50])


def prompts_of(
    value: Any, tokenizer: Tokenizer, echo: bool, most: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """A string, a list of strings, token ids or a list of those -> ids and, for echo, texts. An empty prompt
    begins a new document, and shows as nothing."""
    value = "" if value is None else value
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(v) is int for v in value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise wrong("prompt", "prompt is a string, a list of strings, or token ids.")
    if len(value) > most:
        raise wrong("prompt", f"{len(value):,} prompts: at most {most} texts a request.")
    ids, shown = [], []
    for one in value:
        if isinstance(one, str):
            try:
                encoded = tokenizer.encode(one).tolist()
            except (UserError, ValueError) as error:
                raise wrong("prompt", f"prompt: {error}"[:300]) from None
        elif isinstance(one, list) and all(type(v) is int and 0 <= v < tokenizer.vocab_size for v in one):
            encoded = one
        else:
            raise wrong("prompt", f"prompt: token ids are whole numbers below {tokenizer.vocab_size:,}.")
        shown.append("" if not echo else one if isinstance(one, str) else tokenizer.decode(encoded))
        if sum(map(len, shown)) > MOST_SHOWN:
            raise wrong("prompt", TOO_MUCH_ECHO)
        ids.append(tuple(encoded) or (tokenizer.eot,))
    return tuple(ids), tuple(shown)


def stops(value: Any) -> tuple[str, ...]:
    listed: Sequence[Any] = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > 4 or not all(isinstance(v, str) and v for v in listed):
        raise wrong("stop", "stop is a string or a list of up to four, none of them empty.")
    if any(len(one) > 1000 for one in listed):
        raise wrong("stop", "stop: at most 1,000 characters each.")
    return tuple(listed)


def whole(body: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    value = default if value is None else value
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise wrong(name, f"{name} is {short(value)}: give a whole number from {least:,} to {most:,}.")
    return value


def real(body: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise wrong(name, f"{name} is {short(value)}: give a number from {least:g} to {most:g}.")
    return float(value)


def flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise wrong(name, f"{name} is {short(value)}: give true or false.")
    return bool(value)


def usage_wanted(value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict) or not set(value) <= {"include_usage", "include_obfuscation"}:
        raise wrong("stream_options", 'stream_options is {"include_usage": true} or nothing.')
    return flag(value, "include_usage")


def short(value: Any) -> str:
    return repr(value)[:50]
