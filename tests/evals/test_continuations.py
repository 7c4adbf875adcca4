"""The likelihood of continuations: as if each were scored alone, in full."""

import contextlib
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals import continuations
from overnight.evals.continuations import Item, encode_pair, score
from overnight.models.gpt2 import GPT
from overnight.world import World, connect


def alone(model: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """By the definition: one row, the context cut on the left to what fits, every logit."""
    size = model.config.block_size
    ids = torch.tensor([(context + continuation)[-size - 1 :]])
    with torch.no_grad():
        log_probabilities = F.log_softmax(model.logits(model.hidden(ids[:, :-1])).float(), dim=-1)[0]
    own = log_probabilities[-len(continuation) :]
    wanted = torch.tensor(continuation)
    total = own.gather(1, wanted[:, None]).double().sum().item()
    return total, bool((own.argmax(1) == wanted).all())


def make_items(count: int, longest: int = 30) -> list[Item]:
    draw = random.Random(3)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(50_257) for _ in range(draw.randint(least, most))]

    return [Item(ids(1, longest), [ids(1, 12) for _ in range(draw.randint(1, 5))]) for _ in range(count)]


@pytest.mark.parametrize("opinionated", ["gpt2", "modern"], indirect=True)
@pytest.mark.parametrize("budget", [(1, 1), (100, 1), (100_000, 1), (256, 64)])
def test_each_continuation_scores_as_if_alone(
    opinionated: GPT, monkeypatch: pytest.MonkeyPatch, budget: tuple[int, int]
) -> None:
    """Whatever shares its batch, and however much padding there is."""
    monkeypatch.setitem(continuations.BATCH, "cpu", budget)
    items = make_items(25)
    with connect("cpu") as world:
        found = score(opinionated, items, world, contextlib.nullcontext)
    assert [len(scores) for scores in found] == [len(item.continuations) for item in items]
    for item, scores in zip(items, found, strict=True):
        for ids, one in zip(item.continuations, scores, strict=True):
            total, greedy = alone(opinionated, item.context, ids)
            assert one.log_likelihood == pytest.approx(total, abs=2e-3, rel=1e-5)
            assert one.greedy == greedy


def test_the_likeliest_tokens_are_greedy(opinionated: GPT) -> None:
    context, written = [464, 1755], []
    for _ in range(3):
        with torch.no_grad():
            logits = opinionated.logits(opinionated.hidden(torch.tensor([context + written])))
        written.append(int(logits[0, -1].argmax()))
    other = [*written[:2], (written[2] + 1) % 50_257]
    with connect("cpu") as world:
        ((right, wrong),) = score(
            opinionated, [Item(context, [written, other])], world, contextlib.nullcontext
        )
    assert right.greedy
    assert not wrong.greedy
    assert right.log_likelihood > wrong.log_likelihood


def test_a_context_that_is_too_long_loses_its_beginning(opinionated: GPT) -> None:
    draw = random.Random(7)
    context = [draw.randrange(50_257) for _ in range(70)]
    endings = [[1], [draw.randrange(50_257) for _ in range(20)], [5] * 64]
    with connect("cpu") as world:
        (scores,) = score(opinionated, [Item(context, endings)], world, contextlib.nullcontext)
        for ids, one in zip(endings, scores, strict=True):
            assert one.log_likelihood == pytest.approx(alone(opinionated, context, ids)[0], rel=1e-5)
        with pytest.raises(UserError, match="65 tokens does not fit in a context of 64"):
            score(opinionated, [Item(context, [[5] * 65])], world, contextlib.nullcontext)


def test_many_continuations_of_a_context_do_not_make_one_long_sequence(opinionated: GPT) -> None:
    """lm-eval asks for thousands behind <|endoftext|>, and attention is quadratic in what is fed at once."""
    draw = random.Random(9)
    endings = [[draw.randrange(50_257) for _ in range(draw.randint(1, 30))] for _ in range(40)]
    item = Item([50_256], endings)
    parts = list(continuations.fitted(item, 0, 64))
    assert max(part.length for _, _, part in parts) <= 64
    assert [ids for _, _, part in parts for ids in part.continuations] == endings
    with connect("cpu") as world:
        (scores,) = score(opinionated, [item], world, contextlib.nullcontext)
    for ids, one in zip(endings, scores, strict=True):
        assert one.log_likelihood == pytest.approx(alone(opinionated, [50_256], ids)[0], rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_every_continuation_is_scored_by_exactly_one_rank(
    opinionated: GPT, monkeypatch: pytest.MonkeyPatch, ranks: int, count: int
) -> None:
    """At every remainder, also with more ranks than items."""
    monkeypatch.setitem(continuations.BATCH, "cpu", (60, 1))
    items = make_items(count)
    with connect("cpu") as world:
        expected = score(opinionated, items, world, contextlib.nullcontext)
    shares: list[Tensor] = []

    class Rank(World):
        """One of several, in this process: what it would add to the others' is kept."""

        def sum(self, tensor: Tensor) -> Tensor:
            shares.append(tensor.clone())
            return tensor

        def any(self, here: bool) -> bool:
            return here

    for rank in range(ranks):
        here = Rank(device=torch.device("cpu"), rank=rank, size=ranks)
        score(opinionated, items, here, contextlib.nullcontext)
    filled = torch.stack([share[:, 0] != 0 for share in shares]).sum(0)
    assert (filled == 1).all()
    flat = [one.log_likelihood for scores in expected for one in scores]
    assert torch.stack(shares).sum(0)[:, 0].tolist() == flat


def test_pairs_are_cut_where_lm_eval_cuts_them(tokenizer: Tokenizer) -> None:
    for context, continuation in (
        ("The night", " is long"),
        ("The night ", "is long"),
        ("a", "b c"),
        ("", " x"),
    ):
        before, after = encode_pair(tokenizer, context, continuation)
        assert before == (tokenizer.encode(context.rstrip()).tolist() or [tokenizer.eot])
        if context:
            whole = tokenizer.encode(context + continuation).tolist()
            assert after == whole[len(before) :]
