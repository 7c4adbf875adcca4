"""Texts that come and go while others are being written: one token more for each at a time (continuous
batching). decode.py is for prompts that begin together; here a text joins between any two steps.

Each text has a row of the cache and begins at its column 0; a mask hides what its neighbours, further on,
have written and it has not. Rows in use are the first ones, so that a step computes nothing for the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from overnight.decode import Sampling, draw
from overnight.models.cache import KVCache
from overnight.models.linear import compute_dtype
from overnight.models.networks import Network


@dataclass(eq=False)
class Text:
    """A text on its way."""

    ids: list[int]
    """The prompt, one id at least, and what was drawn."""
    sampling: Sampling
    seed: int
    alternatives: int | None = None
    """How many likeliest tokens to name beside each drawn one; None: not even its own probability."""
    begin: int = 0
    """Of `ids`: what stands at position 0."""
    used: int = 0
    """Positions that the cache holds."""
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Drawn:
    """The next token of a text; NOT_A_NUMBER (decode.py) where its scores are none."""

    token: int
    logprob: float | None = None
    """Its natural logarithm of probability, before temperature and the like."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """(token, logprob), the likeliest first."""


class Rows(KVCache):
    """Some rows of a cache, each with a place of its own for what comes next.

    at: (B, T) int64, the columns to fill; of the cache the first `length` columns are looked at.
    """

    def __init__(self, cache: KVCache, rows: slice, at: Tensor, length: int):
        self.keys = tuple(keys[rows] for keys in cache.keys)
        self.values = tuple(values[rows] for values in cache.values)
        self.places, self.length, self.used = at, length, 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        index = self.places[:, None, :, None].expand_as(k)  # (B, H, T, D)
        keys.scatter_(2, index, k.to(keys.dtype))
        values.scatter_(2, index, v.to(values.dtype))
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)


@dataclass
class Slots:
    """Room for `rows` texts at a time. Ids are always below n_ids."""

    model: Network
    rows: int
    n_ids: int
    texts: list[Text] = field(default_factory=list)
    """Those being written; the i-th has row i of the cache."""

    def __post_init__(self) -> None:
        self.device = self.model.wte.weight.device
        config = self.model.config
        self.block_size = config.block_size
        self.cache = KVCache(config, self.rows, config.block_size, self.device, compute_dtype(self.device))

    @property
    def free(self) -> int:
        return self.rows - len(self.texts)

    def join(self, together: list[Text]) -> list[Drawn]:
        """Begin texts of one prompt, which is read once: the first token of each. There must be room."""
        first, row = together[0], len(self.texts)
        for text in together:
            text.generator = torch.Generator(self.device).manual_seed(text.seed)
            text.begin = max(0, len(text.ids) - self.block_size)
        hidden = self.read(first, row)  # (1, C)
        self.texts.append(first)
        for text in together[1:]:
            self.copy(row, len(self.texts), first.used)
            text.used = first.used
            self.texts.append(text)
        return self.draw(hidden.expand(len(together), -1), together)

    def step(self) -> list[Drawn]:
        """One token more for each of `texts`."""
        for row, text in enumerate(self.texts):
            if text.used == self.block_size:
                # Positions are absolute: where they run out, the second half of the context is read again,
                # its last token together with everybody's.
                text.begin = len(text.ids) - max(1, self.block_size // 2)
                self.read(text, row)
                text.used -= 1
        return self.draw(self.advance(), self.texts)

    def leave(self, gone: Iterable[Text]) -> None:
        """End texts; the last ones move into their rows."""
        for text in gone:
            row, last = self.texts.index(text), len(self.texts) - 1
            if row != last:
                self.copy(last, row, self.texts[last].used)
                self.texts[row] = self.texts[last]
            self.texts.pop()

    def copy(self, source: int, target: int, used: int) -> None:
        for layer in (*self.cache.keys, *self.cache.values):
            layer[target, :, :used] = layer[source, :, :used]

    def read(self, text: Text, row: int) -> Tensor:
        """Fill a row of the cache with a text: (1, C) at its last position."""
        idx = torch.tensor([text.ids[text.begin :]], device=self.device)  # (1, T)
        text.used = idx.size(1)
        places = torch.arange(text.used, device=self.device)[None]  # (1, T)
        return self.model.hidden(idx, Rows(self.cache, slice(row, row + 1), places, text.used))[:, -1]

    def advance(self) -> Tensor:
        """Feed the last token of every text: (B, C)."""
        used = [text.used for text in self.texts]
        places = torch.tensor(used, device=self.device)[:, None]  # (B, 1)
        fed = torch.tensor([[text.ids[-1]] for text in self.texts], device=self.device)  # (B, 1)
        length, mask = max(used) + 1, None
        if min(used) < max(used):
            mask = (torch.arange(length, device=self.device) <= places)[:, None, None]  # (B, 1, 1, S)
        seen = Rows(self.cache, slice(0, len(used)), places, length)
        hidden = self.model.hidden(fed, seen, places, mask)  # (B, 1, C)
        for text in self.texts:
            text.used += 1
        return hidden[:, -1]

    def draw(self, hidden: Tensor, texts: list[Text]) -> list[Drawn]:
        """(B, C) -> what each text goes on with, which joins its ids."""
        logits = self.model.logits(hidden)[:, : self.n_ids].float()  # (B, V)
        tokens = [0] * len(texts)
        alike: dict[Sampling, list[int]] = {}
        for i, text in enumerate(texts):
            alike.setdefault(text.sampling, []).append(i)
        for sampling, rows in alike.items():
            noise = logits.new_ones(len(rows), self.n_ids)
            if not sampling.greedy:
                for row, i in zip(noise, rows, strict=True):  # of its own, whoever its neighbours are
                    row.exponential_(generator=texts[i].generator)
            mine = logits if len(rows) == len(texts) else logits[rows]
            for i, token in zip(rows, draw(mine, sampling, noise).tolist(), strict=True):
                tokens[i] = token
                texts[i].ids.append(max(0, token))
        return [
            Drawn(token) if text.alternatives is None else judged(row, token, text.alternatives)
            for row, token, text in zip(logits, tokens, texts, strict=True)
        ]


def judged(logits: Tensor, token: int, alternatives: int) -> Drawn:
    """A token with its probability and that of the likeliest ones. logits: (V,)."""
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(alternatives, len(logprobs)))
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Drawn(token, logprobs[max(0, token)].item(), tuple(likeliest))
