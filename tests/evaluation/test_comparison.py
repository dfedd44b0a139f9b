"""Paired bootstrap differences against numbers computed in another way."""

from __future__ import annotations

import math
import random
from statistics import fmean, quantiles
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.evaluation.comparison import differences, paired_difference


def recomputed(first: list[float], other: list[float], resamples: int = 4000) -> tuple[float, float, float]:
    """The interval and p, with another random generator that draws one query at a time."""
    rng, pairs = random.Random(5), list(zip(first, other, strict=True))
    means = []
    for _ in range(resamples):
        drawn = [rng.choice(pairs) for _ in pairs]
        means.append(fmean(b for _, b in drawn) - fmean(a for a, _ in drawn))
    cuts = quantiles(means, n=40)
    return cuts[0], cuts[-1], sum(mean <= 1e-12 for mean in means) / resamples


def scores(seed: int, size: int, gain: float) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    first = [rng.random() for _ in range(size)]
    return first, [min(1.0, max(0.0, score + rng.gauss(gain, 0.3))) for score in first]


@pytest.mark.parametrize(("seed", "size", "gain"), [(1, 60, 0.05), (2, 60, -0.1), (3, 25, 0.0), (4, 150, 0.02)])
def test_interval_and_p_as_worked_out_in_another_way(seed: int, size: int, gain: float) -> None:
    first, other = scores(seed, size, gain)
    found = paired_difference(first, other, resamples=4000, seed=1)
    assert found is not None
    low, high, p = recomputed(first, other)
    assert found.mean == pytest.approx(fmean(other) - fmean(first))
    assert found.ci95 == pytest.approx((low, high), abs=0.012)
    assert found.p == pytest.approx(p, abs=0.03)
    assert found.queries == size


def test_pairing_is_what_makes_a_small_gain_seen() -> None:
    """Hard and easy questions, each answered a little better. Without pairing, 0 would be well inside the interval."""
    first = [0.0, 0.9] * 30
    found = paired_difference(
        first, [score + 0.02 + 0.001 * (i % 3) for i, score in enumerate(first)], resamples=500, seed=3
    )
    assert found is not None
    assert 0.02 <= found.ci95[0] < found.ci95[1] <= 0.022
    assert found.p == 0


def test_the_same_scores_differ_by_nothing_and_are_no_better() -> None:
    found = paired_difference([0.1, 0.7, 1.0], [0.1, 0.7, 1.0], resamples=100, seed=1)
    assert found == (3, 0.0, (0.0, 0.0), 1.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_other_way_round_it_is_the_same_with_the_sign_turned(pairs: list[tuple[float, float]]) -> None:
    first, other = [a for a, _ in pairs], [b for _, b in pairs]
    there = paired_difference(first, other, resamples=50, seed=7)
    back = paired_difference(other, first, resamples=50, seed=7)
    assert there is not None
    assert back is not None
    assert back.mean == pytest.approx(-there.mean)
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]))
    assert 0 <= there.p <= 1
    assert there.p + back.p >= 1 - 1e-9, "a difference of exactly 0 counts for both methods"


def row(query: str, f1: float | None, judge: float | None = None, category: str = "all") -> dict[str, Any]:
    return {"query_id": query, "category": category, "f1": f1, "judge": judge}


def test_only_queries_with_a_score_on_both_sides_count_by_id_in_any_order() -> None:
    first = [row("a", 0.5, 1.0), row("b", 0.5, None), row("c", 0.5, 0.0), row("only-first", 1.0, 1.0)]
    other = [row("c", 1.0, 0.5), row("b", 0.6, 1.0), row("a", None, 1.0), row("only-other", 0.0, 0.0)]
    f1, judge = differences(first, other, resamples=200, seed=1)
    assert (f1["score"], f1["queries"]) == ("f1", 2)
    assert f1["difference"] == pytest.approx(0.3)
    assert f1["p"] == 0.0
    assert (judge["score"], judge["queries"]) == ("judge", 2)
    assert judge["difference"] == pytest.approx(0.25)
    assert judge["ci95"] == pytest.approx([0.0, 0.5])
    assert judge["p"] == pytest.approx(0.25, abs=0.1)


def test_one_seed_gives_one_interval() -> None:
    first, other = scores(7, 20, 0.05)
    rows = [[row(str(i), value) for i, value in enumerate(some)] for some in (first, other)]
    (once,), (again,), (another,) = (differences(*rows, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once["ci95"] != another["ci95"]
    alone = paired_difference(first, other, resamples=100, seed=1)
    assert alone is not None
    assert (once["ci95"], once["p"]) == (list(alone.ci95), alone.p)


def test_a_score_that_one_side_does_not_have_is_no_difference() -> None:
    found = differences([row("a", 0.5)], [row("a", 0.5, 1.0)], resamples=10, seed=1)
    assert [entry["score"] for entry in found] == ["f1"]
    assert not any(math.isnan(entry["difference"]) for entry in found)


def test_abstention_questions_are_in_no_difference() -> None:
    first = [row("a", 0.0, 0.0), row("b", None, 0.0, "abstention")]
    other = [row("a", 0.0, 0.5), row("b", None, 1.0, "abstention")]
    _, judge = differences(first, other, resamples=10, seed=1)
    assert (judge["queries"], judge["difference"]) == (1, 0.5)
