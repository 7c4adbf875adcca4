"""How likely a model finds some continuations of a context: what HellaSwag, LAMBADA and lm-eval ask.

The context is encoded once for all of its continuations: they lie behind it in one sequence, as branches
that see the context and themselves but not each other, each beginning at the position where the context
ends. Only positions that predict something are projected to logits.

    tokens      the night is | long .     | young and
    positions   0   1     2  | 3          | 3
    predicted            long| .          | and         and, behind the context, "young" as well
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.data.tokens import Tokenizer
from overnight.errors import Abandoned, UserError
from overnight.models.networks import Network
from overnight.world import World

# Tokens of a batch, and what its length is padded to. A CPU wants no padding; on a GPU few shapes recur.
BATCH = {"cpu": (512, 1), "cuda": (32_768, 64), "mps": (4096, 64)}
ROWS = 4096  # positions projected to logits at once


@dataclass(frozen=True)
class Item:
    """A context, one token at least, and its continuations, one token each at least."""

    context: list[int]
    continuations: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens fed: the last of each continuation is predicted only."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    log_likelihood: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Whether each token is the likeliest one."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what follows it, as lm-eval cuts them: the text is encoded as a whole,
    spaces at the context's end belong to the continuation, no context means <|endoftext|>."""
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation).tolist()
    ids = tokenizer.encode(bare).tolist()
    return ids or [tokenizer.eot], whole[len(ids) :]


@torch.no_grad()
def score(
    model: Network,
    items: Sequence[Item],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[list[Score]]:
    """The score of every continuation of every item, the same on every rank and for any number of ranks.

    A context too long for its continuation loses its beginning. progress: called with this rank's batches
    that are done, and all; where it returns something true, on any rank, all ranks raise Abandoned.
    """
    block_size = model.config.block_size
    parts = [part for number, item in enumerate(items) for part in fitted(item, number, block_size)]
    firsts = np.cumsum([0, *(len(item.continuations) for item in items)])  # rows of `found`
    found = torch.zeros(int(firsts[-1]), 2, dtype=torch.float64)
    mine = list(batches(parts, *BATCH[world.device.type]))[world.rank :: world.size]
    was_training, stopped = model.training, False
    model.eval()
    for done, batch in enumerate(mine):
        if stopped := bool(progress(done, len(mine))):
            break
        with autocast():
            scores = score_batch(model, [item for _, _, item in batch], world.device)
        rows = [firsts[number] + first + np.arange(len(item.continuations)) for number, first, item in batch]
        found[np.concatenate(rows)] = scores
    model.train(was_training)
    if world.any(stopped):
        raise Abandoned
    # Each continuation was scored on one rank, and is zero on the others.
    found = world.sum(found.to(world.device) if world.size > 1 else found).cpu()
    of_item = [found[first:last].tolist() for first, last in pairwise(firsts)]
    return [[Score(total, bool(greedy)) for total, greedy in rows] for rows in of_item]


Part = tuple[int, int, Item]  # an item's number, the number of the first of its continuations in here, they


def fitted(item: Item, number: int, block_size: int) -> Iterator[Part]:
    """The item in parts of at most block_size tokens, because attention's cost is quadratic in them: as many
    continuations in each as fit, one at least, with as much of the context's end as fits."""
    check(item, block_size)
    first, together = 0, item.continuations[:1]
    for i, ids in enumerate(item.continuations[1:], 1):
        if Item(item.context, [*together, ids]).length > block_size:
            yield number, first, cropped(item.context, together, block_size)
            first, together = i, []
        together.append(ids)
    yield number, first, cropped(item.context, together, block_size)


def cropped(context: list[int], continuations: list[list[int]], block_size: int) -> Item:
    room = block_size - sum(len(ids) - 1 for ids in continuations)
    return Item(context[-room:], continuations)


def check(item: Item, block_size: int) -> None:
    """Raise UserError for a continuation that does not fit behind one token of context."""
    if (longest := max(map(len, item.continuations))) > block_size:
        raise UserError(f"a continuation of {longest} tokens does not fit in a context of {block_size}.")


def batches(parts: Sequence[Part], budget: int, multiple: int) -> Iterator[list[Part]]:
    """Parts of similar length together, as many as fit into `budget` tokens once padded; longest first, so
    that what does not fit into memory is known at once."""
    batch: list[Part] = []
    for part in sorted(parts, key=lambda part: -part[2].length):
        longest = padded(batch[0][2].length if batch else part[2].length, multiple)
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def score_batch(model: Network, items: Sequence[Item], device: torch.device) -> Tensor:
    """Summed log-likelihood of each continuation of a batch, and 1 where it is greedy: (N, 2) float64."""
    B, T = len(items), padded(max(item.length for item in items), BATCH[device.type][1])
    ids, positions = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    branch = np.full((B, T), -1)  # 0 is the context, 1 and on the continuations, -1 padding
    rows: list[int] = []  # where in the batch each token is predicted
    targets: list[int] = []
    lengths: list[int] = []
    for b, item in enumerate(items):
        at = end = len(item.context)
        ids[b, :end], positions[b, :end], branch[b, :end] = item.context, np.arange(end), 0
        for number, tokens in enumerate(item.continuations, 1):
            fed = slice(at, at + len(tokens) - 1)
            ids[b, fed], branch[b, fed] = tokens[:-1], number
            positions[b, fed] = np.arange(end, end + len(tokens) - 1)
            rows += [b * T + end - 1, *range(b * T + fed.start, b * T + fed.stop)]
            targets += tokens
            lengths.append(len(tokens))
            at = fed.stop
    inputs, places, mask = (torch.from_numpy(array).to(device) for array in (ids, positions, attends(branch)))
    x = model.hidden(inputs, None, places, mask).flatten(0, 1)[torch.tensor(rows, device=device)]  # (M, C)
    losses, hits = [], []
    for part, wanted in zip(x.split(ROWS), torch.tensor(targets, device=device).split(ROWS), strict=True):
        logits = model.logits(part).float()  # (ROWS, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        hits.append(logits.argmax(-1) == wanted)
    found = torch.stack([torch.cat(losses), 1.0 - torch.cat(hits).float()]).cpu().double()  # (2, M)
    continuation = torch.repeat_interleave(torch.tensor(lengths))  # (M,)
    summed, missed = torch.zeros(2, len(lengths), dtype=torch.float64).index_add_(1, continuation, found)
    return torch.stack([-summed, (missed == 0).double()], dim=1)


def attends(branch: np.ndarray) -> np.ndarray:
    """(B, T) numbers of branches -> (B, 1, T, T) bool: each token sees those before it of its own branch and
    of the context (0). Padding (-1) sees padding, because a row that sees nothing is not a number."""
    before = np.tri(branch.shape[1], dtype=bool)
    same = branch[:, :, None] == branch[:, None, :]
    return (before & (same | (branch == 0)[:, None, :]))[:, None]
