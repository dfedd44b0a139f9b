"""Confidence intervals of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bootstrap_ci(values: Sequence[float], *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``; (nan, nan), which JSON shows as null, of none."""
    if not values:
        return math.nan, math.nan
    rng, scores = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [scores[rng.integers(0, scores.size, scores.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
