"""Bootstrap intervals against the normal approximation."""

import math

import pytest

from memskill_cli.scoring.intervals import bootstrap_ci


def test_bootstrap_interval():
    values = [0.0, 1.0] * 200
    low, high = bootstrap_ci(values, resamples=2000, seed=1)
    half_width = 1.96 * 0.5 / math.sqrt(400)  # of the normal approximation
    assert low == pytest.approx(0.5 - half_width, abs=0.01)
    assert high == pytest.approx(0.5 + half_width, abs=0.01)
    assert bootstrap_ci(values, resamples=2000, seed=1) == (low, high)
    narrow = bootstrap_ci(values, resamples=2000, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert narrow == pytest.approx((0.5 - 0.6745 * 0.025, 0.5 + 0.6745 * 0.025), abs=0.004)
    uneven = [math.sqrt(i) for i in range(20)]
    assert bootstrap_ci(uneven, resamples=50, seed=1) == bootstrap_ci(uneven, resamples=50, seed=1)
    assert bootstrap_ci(uneven, resamples=50, seed=1) != bootstrap_ci(uneven, resamples=50, seed=2)


def test_bootstrap_of_one_and_of_none():
    assert bootstrap_ci([0.25], resamples=10, seed=0) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in bootstrap_ci([], resamples=10, seed=0))
