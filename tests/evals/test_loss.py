"""Validation loss and bits per byte by the design's definition."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from overnight.config import ModelConfig
from overnight.data.shards import Tokens
from overnight.evals.loss import validation
from overnight.models.gpt2 import GPT
from overnight.world import World

ALONE = World(torch.device("cpu"))


def shards(count: int, seed: int = 1, ids: int = 11) -> Tokens:
    draw = np.random.default_rng(seed).integers(0, ids, count).astype("<u2")
    return Tokens([draw[: count // 3], draw[count // 3 :]])


def measure(model: GPT, tokens: Tokens, lengths: np.ndarray, T: int, limit: int | None = None) -> dict:
    return dict(validation(model, tokens, lengths, T, limit, ALONE, nullcontext))


def item_at_a_time(
    model: GPT, tokens: np.ndarray, lengths: np.ndarray, T: int, limit: int
) -> tuple[float, float]:
    """The definition, one token after the other."""
    loss = size = 0.0
    model.eval()
    for i in range(1, limit + 1):
        start = (i - 1) // T * T
        with torch.no_grad():
            context = torch.tensor(tokens[start:i].astype(np.int64))[None]
            logits = model.logits(model.hidden(context))[0, -1].double()
        loss -= logits.log_softmax(-1)[int(tokens[i])].item()
        size += lengths[tokens[i]]
    return loss / limit, loss / size / math.log(2)


@pytest.mark.parametrize("count", [2, 8, 9, 10, 65, 700])
@pytest.mark.parametrize("limit", [None, 20])
def test_every_token_but_the_first_is_predicted_once(count: int, limit: int | None) -> None:
    model = GPT(ModelConfig(1, 1, 8, 8, vocab_size=16), 11).init_weights(seed=1)
    with torch.no_grad():
        model.wte.weight.mul_(60)
    tokens, lengths = shards(count), np.array([3, 1, 2, 1, 1, 4, 1, 1, 1, 2, 0])
    found = measure(model, tokens, lengths, 8, limit)
    predicted = min(count - 1, limit or count)
    expected = item_at_a_time(model, tokens.read(0, count), lengths, 8, predicted)
    assert found["tokens"] == predicted
    assert (found["loss"], found["bits_per_byte"]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_by_hand() -> None:
    """A model that gives every one of 4 ids probability 1/4: ln 4 nats a token, 2 bits a token. The text
    'a', 'bb', <|endoftext|>, 'a' behind a first token: 4 predictions, 1 + 2 + 0 + 1 = 4 bytes, 8 bits."""
    model = GPT(ModelConfig(1, 1, 4, 8, vocab_size=4), 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = Tokens([np.array([2, 0, 1, 3, 0], dtype="<u2")])
    found = measure(model, tokens, np.array([1, 2, 5, 0]), 8)
    assert found == {"loss": pytest.approx(math.log(4)), "bits_per_byte": pytest.approx(2.0), "tokens": 4}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("count", [9, 600, 4200])
def test_ranks_share_the_windows_without_loss(ranks: int, count: int) -> None:
    """What the ranks sum up together is what one sums up alone, at every remainder."""
    model = GPT(ModelConfig(1, 1, 8, 8, vocab_size=11), 11).init_weights(seed=1)
    tokens, lengths = shards(count), np.ones(11, dtype=np.int64)
    alone = measure(model, tokens, lengths, 8)
    sums = []

    class Recording(World):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            sums.append(values.clone())
            return values

        def any(self, here: bool) -> bool:
            return here

    for rank in range(ranks):
        world = Recording(torch.device("cpu"), rank, ranks)
        list(validation(model, tokens, lengths, 8, None, world, nullcontext))
    loss, size = sum(sums).tolist()
    assert loss / (count - 1) == pytest.approx(alone["loss"], rel=1e-12)
    assert size == count - 1


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model = GPT(ModelConfig(1, 1, 8, 8, vocab_size=11, dropout=0.5), 11).init_weights(seed=1).train()
    first = measure(model, shards(100), np.ones(11, dtype=np.int64), 8)
    assert model.training
    assert first == measure(model, shards(100), np.ones(11, dtype=np.int64), 8), "dropout is off in it"
    assert all(parameter.grad is None for parameter in model.parameters())
