"""Thinned curves keep what one looks for; smoothed ones follow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.report.thin import POINTS, smooth, thin


def test_short_curves_stay_whole() -> None:
    y = np.arange(POINTS, dtype=float)
    assert thin(y).tolist() == list(range(POINTS))


@given(st.integers(0, 19_999))
def test_no_spike_is_lost_up_or_down(at: int) -> None:
    y = np.sin(np.arange(20_000) / 1000) + np.random.default_rng(1).normal(0, 0.01, 20_000)
    for spike in (9.0, -9.0):
        spiked = y.copy()
        spiked[at] = spike
        kept = thin(spiked)
        assert at in kept
        assert len(kept) <= POINTS + 2
        assert (np.diff(kept) > 0).all()
        assert (kept[0], kept[-1]) == (0, len(y) - 1)


def test_what_is_no_number_is_left_out() -> None:
    y = np.full(5000, np.nan)
    y[[7, 4000]] = 1.0, 2.0
    assert thin(y).tolist() == [7, 4000]
    assert thin(np.full(10, np.nan)).tolist() == []


def test_smoothing_a_level_changes_nothing_and_noise_becomes_less() -> None:
    assert smooth(np.full(1000, 3.25)) == pytest.approx(np.full(1000, 3.25))
    noise = np.random.default_rng(1).normal(3, 0.1, 5000)
    assert np.std(smooth(noise)[100:]) < 0.02
    assert np.mean(smooth(noise)[100:]) == pytest.approx(3, abs=0.01)


def test_smoothing_passes_over_what_is_no_number() -> None:
    y = np.array([1.0, np.nan, 1.0])
    assert np.isnan(smooth(y)[1])
    assert smooth(y)[2] == pytest.approx(1.0)


def test_smoothing_follows_a_loss_that_falls_fast_at_first() -> None:
    y = 3 + 8 * np.exp(-np.arange(19_073) / 300)
    assert abs(smooth(y) - y)[100:].max() < 0.5
