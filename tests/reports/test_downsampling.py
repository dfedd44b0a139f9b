"""A long run is thinned out with nothing lost; layers of a stack add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.reports import downsampling
from memskill_cli.reports.downsampling import Bucket

from .conftest import metrics


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 50))
def test_buckets_hold_every_line_once_and_none_reaches_over_a_stage(lengths: list[int], most: int) -> None:
    rows = [{"stage": stage, "n": i} for stage, length in enumerate(lengths) for i in range(length)]
    found = downsampling.buckets(rows, most)
    assert [row for bucket in found for row in bucket.rows] == rows
    assert [bucket.first for bucket in found] == [1, *(bucket.last + 1 for bucket in found)][:-1]
    assert all(len({row["stage"] for row in bucket.rows}) == 1 for bucket in found)
    assert len(found) <= most + len(lengths)
    assert downsampling.thinned(found) == max(len(bucket.rows) for bucket in found)


def test_a_short_run_is_not_thinned() -> None:
    found = downsampling.buckets([metrics(0, i) for i in range(downsampling.MOST)])
    assert downsampling.thinned(found) == 1
    assert downsampling.buckets([]) == []


def test_a_point_has_its_mean_and_what_it_is_a_mean_of() -> None:
    rows = [metrics(0, i, reward) for i, reward in enumerate([0.1, 0.2, 0.6])]
    (point,) = downsampling.points([Bucket(1, 3, rows)], "episode_reward_mean", "episode_reward_std")
    assert (point.value, point.low, point.high) == (pytest.approx(0.3), 0.1, 0.6)
    single = downsampling.points(downsampling.buckets(rows), "episode_reward_mean", "episode_reward_std")
    assert (single[0].low, single[0].high) == (pytest.approx(0.05), pytest.approx(0.15)), "the deviation either way"
    plain = downsampling.points(downsampling.buckets(rows), "entropy")
    assert (plain[0].value, plain[0].low) == (1.0, None)


def test_values_that_are_none_leave_a_gap() -> None:
    rows: list[dict[str, Any]] = [metrics(0, 0), metrics(0, 1, entropy=None), metrics(0, 2, entropy="?")]
    assert [point.value for point in downsampling.points(downsampling.buckets(rows), "entropy")] == [1.0, None, None]


def test_shares_add_up_and_the_least_used_go_together() -> None:
    usage = {f"skill-{i}": 2 * (20 - i) for i in range(12)}
    layers = downsampling.shares(downsampling.buckets([metrics(0, 0, skill_usage=usage)]), "skill_usage")
    assert [layer.label for layer in layers] == [f"skill-{i}" for i in range(6)] + ["6 others"]
    assert sum(layer.values[0] for layer in layers) == pytest.approx(1)
    assert layers[0].values[0] == pytest.approx(40 / sum(usage.values()))
    assert len({layer.tone for layer in layers}) == 7


def test_actions_are_counted_for_each_span() -> None:
    rows = [metrics(0, 0, actions={"insert": 30, "noop": 5}), metrics(0, 1, actions={"delete": 10})]
    layers = downsampling.per_step(downsampling.buckets(rows), "actions")
    assert {layer.label: list(layer.values) for layer in layers} == {
        "insert": [3.0, 0.0],
        "delete": [0.0, 1.0],
        "noop": [0.5, 0.0],
    }


def test_runs_older_than_the_word_stage_go_by_outer_epochs() -> None:
    old = [{key: value for key, value in metrics(stage, 0).items() if key != "stage"} for stage in (0, 1)]
    assert len(downsampling.buckets(old, 1)) == 2
