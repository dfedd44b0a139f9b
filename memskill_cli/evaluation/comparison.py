"""Comparison of two methods: paired bootstrap differences on the queries for which both have a score.

Each resample draws queries with replacement and takes the difference of the two methods' mean scores on them. Both
means are over the same queries, so differences in the difficulty of queries cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from memskill_cli.datasets.base import ABSTENTION
from memskill_cli.evaluation.results import Row
from memskill_cli.evaluation.summary import SCORES


class Difference(NamedTuple):
    """``mean``: of (other − first) over ``queries``; its 95 % interval; ``p``: the share of resamples at or below 0."""

    queries: int
    mean: float
    ci95: tuple[float, float]
    p: float


def paired_difference(
    first: Sequence[float], other: Sequence[float], *, resamples: int, seed: int
) -> Difference | None:
    """The difference of two lists of scores, shapes (N,), of the same queries in the same order. None if N is 0."""
    if not first:
        return None
    gains_N = np.asarray(other, np.float64) - np.asarray(first, np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([gains_N[rng.integers(0, len(gains_N), len(gains_N))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(len(gains_N), float(gains_N.mean()), (float(low), float(high)), float((means <= 0).mean()))


def differences(
    first: Iterable[Row], other: Iterable[Row], *, resamples: int, seed: int, scores: Sequence[str] = SCORES
) -> list[dict[str, Any]]:
    """One entry for each score that both evaluations have: ``score queries difference ci95 p``.

    Abstention questions are left out, as in the means.
    """
    known = {row["query_id"]: row for row in first if row["category"] != ABSTENTION}
    pairs = [(known[row["query_id"]], row) for row in other if row["query_id"] in known]
    found = []
    for name in scores:
        both = [(a[name], b[name]) for a, b in pairs if a[name] is not None and b[name] is not None]
        result = paired_difference([a for a, _ in both], [b for _, b in both], resamples=resamples, seed=seed)
        if result is not None:
            found.append(
                {
                    "score": name,
                    "queries": result.queries,
                    "difference": result.mean,
                    "ci95": list(result.ci95),
                    "p": result.p,
                }
            )
    return found
