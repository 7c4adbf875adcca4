"""Which tokens a step trains on: a pure function of the step, the same on any number of ranks.

Letters:  T  tokens of a window (block_size)     S  windows of a step     W  windows of an epoch

An epoch lays windows of T tokens over the whole stream from a seeded offset in [0, T) and visits them in a
seeded order; no window comes twice and only a tail shorter than a window stays out. The endless row of
epochs is cut into steps of S windows: that position is the only state the data has. Ranks share a step's
windows out among themselves, so their number changes nothing about which tokens a step sees. Windows that
made training fail can be skipped: the row closes up where they were.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from overnight.data.shards import Tokens

ROUNDS = 6  # of the Feistel network; 4 are enough to look random, 6 cost nothing here
BLOCK = 4096  # windows whose places are computed together


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 to uint64: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*numbers: int) -> int:
    """One well-mixed 64-bit number from several: the key of a seed, an epoch and a purpose."""
    value = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        value = mix(value + np.uint64(0x9E3779B97F4A7C15) + np.array([number % 2**64], dtype=np.uint64))
    return int(value[0])


def permute(indices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A seeded permutation of 0 .. n-1 at `indices`, (k,) int64 -> (k,) int64, without a table of n.

    A Feistel network permutes the next power of four; what lands outside [0, n) walks on through the
    network until it is inside ("cycle walking", Black and Rogaway, 2002), four turns at most on average.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = mix(np.array([seed], dtype=np.uint64) + np.arange(1, ROUNDS + 1, dtype=np.uint64))
    out = indices.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        left, right = out[walking] >> half, out[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        out[walking] = (left << half) | right
        walking = walking[out[walking] >= n]
    return out.astype(np.int64)


@dataclass
class Batches:
    """The training data as steps.

    tokens: the training split. sequences: step -> S (constant, or growing with a batch ramp).
    order: "shuffled" as above, or "sequential", the lecture's: offset 0, windows as they lie.
    skipped: ranges [first, end) of the row of epochs that no step sees, in order, without overlap.
    """

    tokens: Tokens
    block_size: int
    sequences: Callable[[int], int]
    seed: int
    order: Literal["shuffled", "sequential"] = "shuffled"
    skipped: Sequence[Sequence[int]] = ()
    _epochs: list[int] = field(default_factory=lambda: [0], repr=False)  # first position of each epoch
    # (step, position, S) of each step whose S differs from the one before; how far that is known
    _sizes: list[tuple[int, int, int]] = field(default_factory=lambda: [(0, 0, 0)], repr=False)
    _known: int = field(default=0, repr=False)
    _kept: tuple = field(default=(None, None), repr=False)  # the block computed last

    def offset(self, epoch: int) -> int:
        """Where the first window of an epoch starts; at least one window fits behind it."""
        if self.order == "sequential":
            return 0
        return key(self.seed, epoch, 1) % min(self.block_size, len(self.tokens) - self.block_size)

    def windows_in(self, epoch: int) -> int:
        """W: how many windows of T inputs and a last target fit behind the offset."""
        return (len(self.tokens) - 1 - self.offset(epoch)) // self.block_size

    def position(self, step: int) -> int:
        """Windows that come before `step`."""
        while self._known <= step:
            first, position, before = self._sizes[-1]
            if (size := self.sequences(self._known)) != before:
                self._sizes.append((self._known, position + (self._known - first) * before, size))
            self._known += 1
        first, position, size = self._sizes[bisect_right(self._sizes, step, key=lambda one: one[0]) - 1]
        return position + (step - first) * size

    def places(self, step: int) -> np.ndarray:
        """Where the windows of `step` lie in the row of epochs, (S,) int64, rising."""
        places = np.arange(self.position(step), self.position(step + 1))
        for first, end in self.skipped:
            places[places >= first] += end - first
        return places

    def without(self, first_step: int, last_step: int) -> list[list[int]]:
        """`skipped`, with the windows of these steps (the last included) added to it."""
        first, end = int(self.places(first_step)[0]), int(self.places(last_step)[-1]) + 1
        others = [[a, b] for a, b in self.skipped if not first <= a < end]  # those inside are part of it
        return sorted([*others, [first, end]])

    def windows(self, step: int) -> np.ndarray:
        """The first token of each window of `step`, (S,) int64."""
        places = self.places(step)
        while self._epochs[-1] <= places[-1]:
            self._epochs.append(self._epochs[-1] + self.windows_in(len(self._epochs) - 1))
        starts, done = [], 0
        while done < len(places):
            epoch = bisect_right(self._epochs, places[done]) - 1
            block = (places[done] - self._epochs[epoch]) // BLOCK
            first = self._epochs[epoch] + block * BLOCK  # the block's place in the row of epochs
            lies = self._block(epoch, block)
            end = int(np.searchsorted(places, first + len(lies)))
            starts.append(lies[places[done:end] - first])
            done = end
        return np.concatenate(starts)

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """First tokens of the windows [block * BLOCK, (block + 1) * BLOCK) of an epoch; the last is kept."""
        kept = self._kept  # the loader's thread asks too
        if (epoch, block) != kept[0]:
            windows = self.windows_in(epoch)
            index = np.arange(block * BLOCK, min(windows, (block + 1) * BLOCK))
            if self.order == "shuffled":
                index = permute(index, windows, key(self.seed, epoch, 2))
            kept = self._kept = (epoch, block), self.offset(epoch) + index * self.block_size
        return kept[1]

    def at(
        self, step: int, micro_step: int, micro_batch: int, rank: int = 0, ranks: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (micro_batch, T) int64, of one micro-step of one rank.

        Micro-step m of R ranks takes windows [m*R*B, (m+1)*R*B), rank r the r-th B of them.
        """
        first = (micro_step * ranks + rank) * micro_batch
        starts = self.windows(step)[first : first + micro_batch]
        rows = np.stack([self.tokens.read(start, self.block_size + 1) for start in starts.tolist()])
        # Contiguous: a copy to the GPU from anything else goes through memory that is not pinned.
        return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
