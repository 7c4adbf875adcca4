from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.data import batches
from overnight.data.batches import Batches, permute
from overnight.data.shards import Tokens


def line(length: int, *cuts: int) -> Tokens:
    """Tokens 0, 1, 2, ... in shards cut at `cuts`: each token is its own place."""
    return Tokens(np.split(np.arange(length, dtype=np.uint32), cuts))


def make(tokens: int = 103, block_size: int = 4, sequences: int = 24, seed: int = 1, **more) -> Batches:
    return Batches(line(tokens, 7, 8, 50), block_size, lambda step: sequences, seed, **more)


def seen(batches: Batches, step: int, ranks: int = 1, micro_batch: int = 1) -> np.ndarray:
    """The windows that all ranks see in a step, (S, T + 1)."""
    rows = []
    for micro_step in range(batches.sequences(step) // (ranks * micro_batch)):
        for rank in range(ranks):
            inputs, targets = batches.at(step, micro_step, micro_batch, rank, ranks)
            assert inputs.shape == targets.shape == (micro_batch, batches.block_size)
            assert inputs.dtype == targets.dtype == np.int64
            rows.append(np.concatenate([inputs, targets[:, -1:]], axis=1))
            assert (rows[-1][:, 1:] == targets).all()
    return np.concatenate(rows)


def epochs(firsts: list[int], tokens: int, block_size: int) -> Iterator[list[int]]:
    """First tokens of windows, cut into epochs: where one starts fixes which windows it must have."""
    while firsts:
        windows = range(firsts[0] % block_size, tokens - block_size, block_size)
        yield firsts[: len(windows)]
        firsts = firsts[len(windows) :]


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4096, 4097, 100_000])
def test_permute_is_a_permutation(n: int) -> None:
    assert np.sort(permute(np.arange(n), n, seed=n)).tolist() == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.data())
def test_permute_needs_no_other_indices(n: int, seed: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9, unique=True))
    together = permute(np.array(indices), n, seed)
    assert together.tolist() == [permute(np.array([i]), n, seed)[0] for i in indices]
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together.tolist())) == len(indices)


def test_permute_sends_every_index_everywhere_about_as_often() -> None:
    counts = np.zeros((7, 7), dtype=int)
    for seed in range(7000):
        counts[np.arange(7), permute(np.arange(7), 7, seed)] += 1
    assert (abs(counts - 1000) < 150).all()  # five standard deviations


def test_windows_are_laid_from_the_offset_and_targets_are_one_further() -> None:
    """12 tokens, windows of 4 with a target more: from offset 3, only 3-7 and 7-11 fit."""
    data = Batches(line(12, 5), 4, lambda step: 2, seed=0)
    data.offset = lambda epoch: 3  # type: ignore[method-assign]
    inputs, targets = data.at(step=0, micro_step=0, micro_batch=2)
    assert sorted(inputs.tolist()) == [[3, 4, 5, 6], [7, 8, 9, 10]]
    assert sorted(targets.tolist()) == [[4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(("tokens", "steps"), [(22, 3), (103, 9), (1000, 60)])
def test_every_window_comes_exactly_once_in_an_epoch(tokens: int, steps: int, ranks: int) -> None:
    """Over borders of shards and epochs; with 22 tokens, several epochs pass in one step."""
    data = make(tokens)
    rows = np.concatenate([seen(data, step, ranks) for step in range(steps)])
    assert (rows == rows[:, :1] + np.arange(5)).all()
    *complete, last = epochs(rows[:, 0].tolist(), tokens, 4)
    assert len(complete) >= 5
    for epoch in complete:
        assert sorted(epoch) == list(range(min(epoch), tokens - 4, 4))
        assert min(epoch) < 4  # tokens left out at the start
        assert tokens - 1 - (max(epoch) + 4) < 4  # and at the end
    assert len(set(last)) == len(last)


@given(
    tokens=st.integers(6, 200),
    block_size=st.integers(1, 5),
    sequences=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    block=st.integers(1, 50),
)
def test_every_window_comes_exactly_once_whatever_the_sizes(
    tokens: int, block_size: int, sequences: int, seed: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BLOCK", block)
        data = make(tokens, block_size, sequences, seed)
        firsts = np.concatenate([data.windows(step) for step in range(20)]).tolist()
    *complete, last = epochs(firsts, tokens, block_size)
    for epoch in complete:
        assert sorted(epoch) == list(range(epoch[0] % block_size, tokens - block_size, block_size))
    assert len(set(last)) == len(last)


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_ranks_together_see_what_one_would(order: str, ranks: int, micro_batch: int) -> None:
    data = make(sequences=48, order=order)
    for step in range(5):
        assert (seen(data, step, ranks, micro_batch) == seen(data, step)).all()


def test_a_step_depends_on_nothing_that_came_before() -> None:
    steps = list(range(10))
    forward = make()
    expected = {step: seen(forward, step) for step in steps}
    backward = make()
    for step in [*reversed(steps), 7, 7, 9, 0]:
        assert (seen(backward, step) == expected[step]).all()
        assert (seen(make(), step) == expected[step]).all()


def test_seeds_and_epochs_differ_in_offset_and_order() -> None:
    firsts = {
        (seed, epoch): tuple(found)
        for seed in range(10)
        for epoch, found in enumerate(
            epochs(np.concatenate([make(seed=seed).windows(step) for step in range(10)]).tolist(), 103, 4)
        )
    }
    assert len(set(firsts.values())) == len(firsts) >= 80
    assert {min(found) for found in firsts.values() if len(found) > 20} == {0, 1, 2, 3}


def test_an_epoch_is_not_in_the_order_of_the_text() -> None:
    first, *_ = epochs(make(tokens=1000, sequences=300).windows(0).tolist(), 1000, 4)
    neighbours = sum(b - a == 4 for a, b in pairwise(first))
    assert neighbours < 10  # one is what chance gives


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5])
def test_any_number_is_a_seed(seed: int) -> None:
    assert seen(make(seed=seed), 0).shape == (24, 5)


def test_sequential_order_is_the_lectures() -> None:
    """DataLoaderLite: B * T tokens a batch as they lie, then from the start again (6 batches, 1 token)."""
    length, batch, block = 6 * 2 * 4 + 1, 2, 4
    buffer, position = np.arange(length), 0
    data = Batches(line(length, 10), block, lambda step: batch, seed=1, order="sequential")
    for step in range(15):
        part = buffer[position : position + batch * block + 1]
        inputs, targets = data.at(step, 0, batch)
        assert (inputs == part[:-1].reshape(batch, block)).all()
        assert (targets == part[1:].reshape(batch, block)).all()
        position += batch * block
        if position + batch * block + 1 > length:
            position = 0


def test_sequential_order_shares_a_step_out_as_the_lecture_does() -> None:
    """Rank r starts at B * T * r and goes on by B * T * ranks."""
    data = Batches(line(100), 4, lambda step: 12, seed=1, order="sequential")
    for rank in range(3):
        starts = [data.at(0, micro_step, 2, rank, 3)[0][:, 0].tolist() for micro_step in range(2)]
        first = 2 * 4 * rank
        assert starts == [[first, first + 4], [first + 24, first + 28]]


@pytest.mark.parametrize(
    "ramp",
    [lambda step: 1 + step, lambda step: 2 ** min(step, 5), lambda step: 3 if step % 2 else 40],
)
def test_a_growing_batch_goes_through_the_same_windows_in_the_same_order(ramp: Callable[[int], int]) -> None:
    ramped = Batches(line(103), 4, ramp, seed=1)
    steps = [ramped.windows(step) for step in range(20)]
    assert [len(step) for step in steps] == [ramp(step) for step in range(20)]
    one_by_one = Batches(line(103), 4, lambda step: 1, seed=1)
    together = np.concatenate(steps)
    assert together.tolist() == [one_by_one.windows(i)[0] for i in range(len(together))]


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
@pytest.mark.parametrize("tokens", [5, 6, 7, 8, 9])
def test_data_barely_longer_than_a_window_is_enough(tokens: int, order: str) -> None:
    data = Batches(line(tokens), 4, lambda step: 3, seed=1, order=order)
    rows = np.concatenate([seen(data, step) for step in range(50)])
    assert (rows == rows[:, :1] + np.arange(5)).all()
    fitting = range(0, tokens - 4, 1 if order == "shuffled" else 4)
    assert set(rows[:, 0].tolist()) == set(fitting)
    assert all(data.windows_in(epoch) >= 1 for epoch in range(50))


def test_skipped_windows_are_seen_by_no_step_and_the_row_closes_up() -> None:
    """What comes before a skipped range stays in its step, what comes behind moves up; over epochs too."""
    plain = make(sequences=6)
    row = np.concatenate([plain.windows(step) for step in range(40)])
    skipped = plain.without(3, 5)
    assert skipped == [[18, 36]]
    closed = make(sequences=6, skipped=skipped)
    kept = np.concatenate([closed.windows(step) for step in range(30)])
    assert kept.tolist() == np.delete(row, np.arange(18, 36))[: len(kept)].tolist()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=4))
def test_ranges_are_skipped_one_after_the_other(rows: list[tuple[int, int]]) -> None:
    """Each range is named by steps as they are counted when it happens, so it skips what was seen then."""
    batches, gone = make(sequences=5), set()
    row = np.concatenate([batches.windows(step) for step in range(120)])
    for first, more in rows:
        places = range(len(row))
        left = [place for place in places if place not in gone]
        gone |= set(left[5 * first : 5 * (first + more + 1)])
        batches = make(sequences=5, skipped=batches.without(first, first + more))
    edges = [edge for one in batches.skipped for edge in one]
    assert edges == sorted(edges)
    left = [place for place in range(len(row)) if place not in gone]
    seen = np.concatenate([batches.windows(step) for step in range(40)])
    assert seen.tolist() == row[left[: len(seen)]].tolist()


def test_positions_with_a_growing_batch_are_sums() -> None:
    sizes = [2, 2, 2, 4, 4, 8, 8, 8, 8]
    batches = Batches(line(1000), 4, lambda step: sizes[min(step, 8)], seed=1)
    assert batches.position(7) == sum(sizes[:7])  # any order of asking
    assert [batches.position(step) for step in range(10)] == [sum(sizes[:step]) for step in range(10)]
    assert batches.position(100_000) == sum(sizes) + 8 * (100_000 - 9)
    assert len(batches._sizes) < 9, "memory does not grow with the steps"
