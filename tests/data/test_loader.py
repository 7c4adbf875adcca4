from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from overnight.data.batches import Batches
from overnight.data.loader import Loader
from overnight.data.shards import Tokens
from overnight.world import World

MICRO_BATCH = 2


def batches() -> Batches:
    """12 windows a step, later 24, over several epochs."""
    tokens = Tokens(np.split(np.arange(203, dtype=np.uint16), [7, 90]))
    return Batches(tokens, 4, lambda step: 12 if step < 3 else 24, seed=5)


@pytest.fixture(params=[(0, 1), (0, 2), (1, 2), (2, 3)], ids=lambda ranks: "rank {} of {}".format(*ranks))
def loader(request: pytest.FixtureRequest) -> Iterator[Loader]:
    rank, ranks = request.param
    with closing(Loader(batches(), MICRO_BATCH, World(torch.device("cpu"), rank=rank, size=ranks))) as made:
        yield made


def check(loader: Loader, step: int) -> None:
    """The loader's micro-batches of a step are those of `batches.at`."""
    rank, ranks = loader.world.rank, loader.world.size
    got = list(loader.at(step))
    assert len(got) == loader.micro_steps(step) == (12 if step < 3 else 24) // (MICRO_BATCH * ranks)
    for micro_step, (inputs, targets) in enumerate(got):
        expected = batches().at(step, micro_step, MICRO_BATCH, rank, ranks)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.device == targets.device == torch.device("cpu")
        assert inputs.tolist() == expected[0].tolist()
        assert targets.tolist() == expected[1].tolist()


def test_a_rank_gets_its_micro_batches_in_order(loader: Loader) -> None:
    for step in range(10):
        check(loader, step)


def test_reading_ahead_changes_nothing_when_steps_come_out_of_order(loader: Loader) -> None:
    for step in (0, 5, 4, 4, 9, 0, 1):
        check(loader, step)


def test_a_step_left_in_the_middle_can_be_begun_again(loader: Loader) -> None:
    for step in (3, 4, 3):
        next(loader.at(step))
        check(loader, step)


def test_an_error_in_reading_reaches_the_loop(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(start: int, length: int) -> None:
        raise OSError("the disk is gone")

    steps = loader.at(0)
    next(steps)
    monkeypatch.setattr(loader.batches.tokens, "read", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(loader.at(1))
