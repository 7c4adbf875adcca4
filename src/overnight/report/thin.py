"""Long curves for the eye: fewer points with every spike kept, and the trend under the noise."""

import itertools

import numpy as np

POINTS = 1200  # of a curve, about what a screen can show


def thin(y: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Indices of about `points` values that draw the same curve: of each stretch the least and the largest,
    and the curve's ends. y: (N,); NaN are left out. Returns increasing int64 indices."""
    known = np.flatnonzero(np.isfinite(y))
    if len(known) <= points:
        return known
    edges = np.linspace(0, len(known), points // 2 + 1).astype(int)
    kept = [known[0], known[-1]]
    for a, b in itertools.pairwise(edges):
        stretch = y[known[a:b]]
        kept += [known[a + stretch.argmin()], known[a + stretch.argmax()]]
    return np.unique(kept)


def smooth(y: np.ndarray) -> np.ndarray:
    """Exponential moving average of (N,), unbiased at its start; NaN are passed over and stay.

    Its half-life grows with the steps taken, to a hundredth of all: losses fall fast at first, then slowly.
    """
    total = weight = 0.0
    out = np.full(len(y), np.nan)
    half_lives = np.clip(np.arange(len(y)) / 30, 3.0, max(3.0, len(y) / 100))
    for i, (value, keep) in enumerate(zip(y.tolist(), (0.5 ** (1 / half_lives)).tolist(), strict=True)):
        if value == value:  # not NaN
            total, weight = keep * total + value, keep * weight + 1
            out[i] = total / weight
    return out
