"""One token more for several texts at a time, with what came before in a cache.

Texts of different lengths lie flush right, with padding before the shorter ones, so that all of them grow in
the same column:

    column    0   1   2   3 | 4
    a         the night is  long
    b                 all  night      begins at column 2: its positions are 0, 1
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overnight.models.cache import KVCache
from overnight.models.linear import compute_dtype
from overnight.models.networks import Network

COLDEST = 1e-5  # temperatures below are 0: dividing by them leaves fp32's range
NOT_A_NUMBER = -1  # in the place of a token


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al., 2020); 1: all."""

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """One token from each row of fp32 logits, (B, V) -> (B,) int64; NOT_A_NUMBER where that is what they are.

    noise: (B, V), exponentially distributed. The largest of probability / noise falls on each token with its
    probability (what torch.multinomial does), without the host having to look.
    """
    finite = logits.logsumexp(dim=-1).isfinite()
    if sampling.greedy:
        return torch.where(finite, logits.argmax(dim=-1), NOT_A_NUMBER)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        smallest = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest, -float("inf"))
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier ones
        # The likeliest always stays, however small a float top_p becomes.
        ordered = ordered.masked_fill((before >= sampling.top_p) & (before > 0), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.where(finite, (probabilities / noise).argmax(dim=-1), NOT_A_NUMBER)


class Decoder:
    """Some texts on their way: `step` adds a token to each.

    prompts: (T,) int64 each, T >= 1, on the model's device; of one longer than block_size its end counts.
    When a text's positions run out, the second half of its context is read again from position 0:
    GPT-2's positions are absolute, so no cache survives a shift. Ids are always below n_ids.

    static: every step has the same shapes and finds its place in tensors, so that on CUDA it is captured
    once, as a graph, and only launched again. Otherwise attention looks at just what the cache holds.
    """

    def __init__(
        self, model: Network, prompts: Sequence[Tensor], length: int, sampling: Sampling, seed: int,
        n_ids: int, static: bool | None = None,
    ):  # fmt: skip
        device, B = model.wte.weight.device, len(prompts)
        self.model, self.sampling, self.n_ids = model, sampling, n_ids
        self.generator = torch.Generator(device).manual_seed(seed)
        self.static = device.type == "cuda" if static is None else static
        self.graph: torch.cuda.CUDAGraph | None = None
        block_size, longest = model.config.block_size, max(map(len, prompts))
        self.column, end = longest, longest + length  # to be filled next; behind the last
        self.texts = torch.zeros(B, end, dtype=torch.long, device=device)
        for row, prompt in zip(self.texts, prompts, strict=True):
            row[longest - len(prompt) : longest] = prompt
        # The column that each text is read from.
        self.begins = [longest - min(len(prompt), block_size) for prompt in prompts]
        room = min(block_size, end - min(self.begins))
        self.cache = KVCache(model.config, B, room, device, compute_dtype(device))
        self.cache.used = room  # as good as full: it has to be read into first
        self.columns = torch.arange(room, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.pads = torch.zeros(B, dtype=torch.long, device=device)
        self.drawn = torch.zeros(B, dtype=torch.long, device=device)
        self.noise = torch.ones(B, n_ids, device=device)

    def step(self) -> Tensor:
        """The next token of each text, (B,) int64, or NOT_A_NUMBER, in memory that the next step reuses."""
        if not self.sampling.greedy:
            self.noise.exponential_(generator=self.generator)
        if self.cache.used == self.cache.length:
            self.read()
        elif self.static:
            self.advance_static()
        else:
            self.advance()
        self.texts[:, self.column] = self.drawn.clamp(min=0)
        self.column += 1
        return self.drawn

    def read(self) -> None:
        """Fill the cache with the texts so far, of those that are out of positions the second half; draw."""
        block_size = self.model.config.block_size
        begin_half = self.column - max(1, block_size // 2)
        fits = [self.column - begin <= block_size for begin in self.begins]
        self.begins = [a if fit else begin_half for a, fit in zip(self.begins, fits, strict=True)]
        start = min(self.begins)
        self.padded = max(self.begins) > start
        self.pads.copy_(torch.tensor([begin - start for begin in self.begins]))
        self.cache.used = 0
        idx = self.texts[:, start : self.column]
        columns = self.columns[: idx.size(1)]
        if not self.padded:
            self.draw(self.model.hidden(idx, self.cache))
            return
        inside = columns >= self.pads[:, None]  # (B, T)
        # Padding sees padding, because a row that sees nothing is not a number.
        mask = (columns[:, None] >= columns) & (inside[:, :, None] == inside[:, None, :])  # (B, T, T)
        positions = (columns - self.pads[:, None]).clamp(min=0)
        self.draw(self.model.hidden(idx, self.cache, positions, mask[:, None]))

    def advance(self) -> None:
        """Feed what was drawn last, and draw."""
        fed = self.drawn.clamp(min=0)[:, None]
        if not self.padded:
            self.draw(self.model.hidden(fed, self.cache))
            return
        seen = self.columns[: self.cache.used + 1] >= self.pads[:, None]  # (B, S)
        positions = self.cache.used - self.pads[:, None]
        self.draw(self.model.hidden(fed, self.cache, positions, seen[:, None, None]))

    def advance_static(self) -> None:
        """The same with the place in a tensor: attention looks at the whole cache, through a mask."""
        used = self.cache.used
        self.at.fill_(used)
        if self.drawn.is_cuda:
            self.graph = self.graph or self.captured()
            self.graph.replay()
        else:
            self.compute()
        self.cache.used = used + 1

    def compute(self) -> None:
        self.cache.at = self.at
        seen = (self.columns >= self.pads[:, None]) & (self.columns <= self.at)  # (B, room)
        fed, positions = self.drawn.clamp(min=0)[:, None], self.at - self.pads[:, None]
        self.draw(self.model.hidden(fed, self.cache, positions, seen[:, None, None]))
        self.cache.at = None

    def captured(self) -> torch.cuda.CUDAGraph:
        """What `compute` launches. What is computed on the way is computed again by the first replay."""
        fed, aside = self.drawn.clone(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up outside of a capture
            self.compute()
            self.drawn.copy_(fed)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        return graph

    def draw(self, hidden: Tensor) -> None:
        """(B, T, C) -> the next token of each text."""
        logits = self.model.logits(hidden[:, -1])[:, : self.n_ids].float()  # (B, V)
        self.drawn.copy_(draw(logits, self.sampling, self.noise))
