"""Hard cases: sequences worked by hand."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.agent.hard_cases import HardCase, HardCasePool, select
from memskill_cli.config import DesignerConfig
from memskill_cli.errors import RunError
from memskill_cli.rollout.rewards import F1Reward, JudgeReward
from memskill_cli.types import Matrix, MemoryItem, Query, QueryResult, Retrieved

CONFIG = DesignerConfig()
F1 = F1Reward().of, F1Reward().threshold(CONFIG)
JUDGE = JudgeReward().of, JudgeReward().threshold(CONFIG)


def answer(query_id: str, f1: float | None, prediction: str = "no idea", **fields: Any) -> QueryResult:
    query = Query(query_id, "t1", "2", "When did Ana move?", ("May 2023",), scored=fields.pop("scored", True))
    found = tuple(Retrieved(MemoryItem(f"m{i}", f"memory {i}", ()), 1.0 - i / 100) for i in range(30))
    return QueryResult(query, prediction, found, f1, **fields)


def case(query_id: str, score: float = 0.0, fail_count: int = 1, epoch: int = 0) -> HardCase:
    return HardCase(
        query_id, "t1", "2", f"question {query_id}", ("truth",), "guess", ("a memory",), score, fail_count, epoch
    )


def ids(clusters: list[list[HardCase]]) -> list[list[str]]:
    return [[item.query_id for item in cluster] for cluster in clusters]


# --- the pool ---


def test_a_query_enters_is_seen_again_and_leaves() -> None:
    pool = HardCasePool(CONFIG)
    pool.observe([answer("q1", 0.4, "first"), answer("q2", 0.5), answer("q3", 1.0)], 3, *F1)
    (seen,) = pool.cases
    assert (seen.query_id, seen.fail_count, seen.epoch, seen.score, seen.prediction) == ("q1", 1, 3, 0.4, "first")
    assert (seen.trace_id, seen.category, seen.gold_answers) == ("t1", "2", ("May 2023",))
    assert seen.question == "When did Ana move?"
    assert seen.retrieved == tuple(f"memory {i}" for i in range(20))

    pool.observe([answer("q1", 0.0, "second")], 7, *F1)
    (seen,) = pool.cases
    assert (seen.fail_count, seen.epoch, seen.score, seen.prediction) == (2, 7, 0.0, "second")

    pool.observe([answer("q1", 0.5)], 8, *F1)
    assert len(pool) == 0

    pool.observe([answer("q1", 0.1)], 9, *F1)
    assert pool.cases[0].fail_count == 1, "what was once solved begins anew"


def test_what_has_no_score_neither_enters_nor_counts_nor_leaves() -> None:
    pool = HardCasePool(CONFIG, [case("q1", fail_count=4, epoch=1)])
    unknown = [answer("q1", None, error="timeout"), answer("q2", None), answer("q3", 0.0, scored=False)]
    pool.observe(unknown, 5, *F1)
    pool.observe([answer("q1", 1.0, error="judge: unreadable"), answer("q4", 0.0)], 5, *JUDGE)
    assert pool.cases == (case("q1", fail_count=4, epoch=1),)
    pool.observe([answer("q2", None), answer("q5", 0.0)], 6, *F1)
    assert [item.query_id for item in pool.cases] == ["q1", "q5"], "those behind one without a score are looked at"


def test_with_a_judge_half_right_is_hard() -> None:
    pool = HardCasePool(CONFIG)
    pool.observe([answer("q1", 0.9, judge=0.5), answer("q2", 0.1, judge=1.0), answer("q3", 0.0, judge=0.0)], 0, *JUDGE)
    assert [(item.query_id, item.score) for item in pool.cases] == [("q1", 0.5), ("q3", 0.0)]


def test_the_same_query_twice_in_one_batch_is_seen_in_order() -> None:
    pool = HardCasePool(CONFIG)
    pool.observe([answer("wrong last", 1.0), answer("right last", 0.0), answer("wrong twice", 0.0)], 0, *F1)
    pool.observe([answer("wrong last", 0.0), answer("right last", 1.0), answer("wrong twice", 0.0)], 0, *F1)
    assert [(item.query_id, item.fail_count) for item in pool.cases] == [("wrong last", 1), ("wrong twice", 2)]


def test_pruning_by_age_then_capacity() -> None:
    config = replace(CONFIG, case_max_age=100, case_capacity=3)
    old, edge = case("old", epoch=49, fail_count=9), case("edge", epoch=50, fail_count=2)
    pool = HardCasePool(config, [old, edge])
    pool.prune(150)
    assert pool.cases == (edge,), "100 epochs are in the window, 101 are not"

    recent = [case("new", epoch=60), case("b", epoch=50, fail_count=2), case("c", epoch=50, fail_count=1)]
    pool = HardCasePool(config, [*recent, edge])
    pool.prune(60)
    assert [item.query_id for item in pool.cases] == ["b", "edge", "new"], "the recent, then the most failed"

    pool = HardCasePool(config, [case(name) for name in "dacb"])
    pool.prune(0)
    assert [item.query_id for item in pool.cases] == ["a", "b", "c"]


_cases = st.builds(case, st.text(max_size=5), st.floats(0, 1), st.integers(1, 10**6), st.integers(0, 300)) | st.builds(
    HardCase, *[st.text(max_size=5)] * 4, st.tuples(st.text()), st.text(), st.tuples(), *[st.just(1)] * 3
)


@given(st.lists(_cases))
def test_rows_round_trip(cases: list[HardCase]) -> None:
    pool = HardCasePool(CONFIG, cases)
    again = HardCasePool.from_rows(CONFIG, json.loads(json.dumps(pool.rows())))
    assert again.cases == pool.cases
    assert len(again) == len({item.query_id for item in cases})


def test_a_pool_from_rows_keeps_to_the_settings() -> None:
    rows = HardCasePool(CONFIG, [case("q1", epoch=1), case("q2", epoch=9)]).rows()
    pool = HardCasePool.from_rows(replace(CONFIG, case_max_age=5), rows)
    pool.prune(9)
    assert [item.query_id for item in pool.cases] == ["q2"]


@pytest.mark.parametrize(
    "change", [{"truths": None}, {"score": "high"}, {"extra": 1}, {"fails": None}, {"epoch": "x"}, {"stage": 1}]
)
def test_a_row_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="not a hard case"):
        HardCasePool.from_rows(CONFIG, [{**case("q1").to_row(), **change}])


def test_where_the_evidence_was_lost_is_that_of_the_last_failure() -> None:
    pool = HardCasePool(CONFIG)
    pool.observe([answer("q1", 0.0, failure="lost"), answer("q2", 0.0)], 1, *F1)
    assert [item.stage for item in pool.cases] == ["lost", ""]
    pool.observe([answer("q1", 0.0, failure="not_used")], 2, *F1)
    assert [item.stage for item in HardCasePool.from_rows(CONFIG, pool.rows()).cases] == ["not_used", ""]
    older = {name: value for name, value in case("q1").to_row().items() if name != "stage"}
    assert HardCase.from_row(older) == case("q1"), "a row of an older version"
    silent = HardCasePool(replace(CONFIG, evidence=False))
    silent.observe([answer("q1", 0.0, failure="lost")], 1, *F1)
    assert silent.cases[0].stage == "", "as published: the designer is told nothing"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, 0.0, 0.49, 0.5, 1.0])), max_size=40))
def test_the_pool_holds_what_was_last_wrong_with_its_failures_since_last_right(seen: list[Any]) -> None:
    pool = HardCasePool(CONFIG)
    for epoch, (query_id, f1) in enumerate(seen):
        pool.observe([answer(query_id, f1)], epoch, *F1)
    expected = {}
    for query_id in sorted({query_id for query_id, _ in seen}):
        scores = [f1 for other, f1 in seen if other == query_id and f1 is not None]
        since = [*scores][next((i for i in range(len(scores), 0, -1) if scores[i - 1] >= 0.5), 0) :]
        if since:
            expected[query_id] = len(since)
    assert {item.query_id: item.fail_count for item in pool.cases} == expected


# --- selection ---


def corners(*counts: int) -> Matrix:
    """``counts[c]`` points close to the c-th axis."""
    rows = []
    for axis, count in enumerate(counts):
        for i in range(count):
            rows.append(np.eye(8)[axis] + 0.01 * np.eye(8)[7] * i)
    return np.array(rows, np.float32).reshape(-1, 8)


def test_few_cases_are_a_cluster_each() -> None:
    cases = [case("a"), case("b", fail_count=3), case("c", score=0.4)]
    assert ids(select(cases, corners(3), CONFIG)) == [["b"], ["a"], ["c"]]
    assert select([], corners(0), CONFIG) == []
    five = [case(name) for name in "abcde"]
    alike = np.ones((5, 8), np.float32)
    assert ids(select(five, alike, CONFIG)) == [["a"], ["b"], ["c"], ["d"], ["e"]], "even where their embeddings agree"


def test_of_equal_questions_the_one_that_needs_most_attention_is_shown() -> None:
    same = [
        replace(case(name, fail_count=fails), question="Where  is Bo?")
        for name, fails in (("a", 1), ("b", 7), ("c", 2))
    ]
    other = [replace(case("d"), question="where is bo?"), case("e")]
    assert ids(select([*same, *other], corners(5), CONFIG)) == [["b"], ["e"]]


def test_three_of_each_cluster_then_the_best_of_the_rest() -> None:
    # (1 − score)·log(1 + fails): a fail more weighs, a score takes away, and ties go by id.
    axis0 = [case(f"a{i}", fail_count=9) for i in range(8)]
    axis1 = [case("b0", score=0.4), case("b1"), case("b2", fail_count=2), case("b3", score=0.2)]
    axis2 = [case("c0"), case("c1", fail_count=5)]
    clusters = select(axis0 + axis1 + axis2, corners(8, 4, 2), replace(CONFIG, clusters=3, max_cases=10))
    assert ids(clusters) == [["a0", "a1", "a2", "a3", "a4"], ["c1", "c0"], ["b2", "b1", "b3"]]
    assert clusters[0][0].priority == pytest.approx(math.log(10))


def test_room_for_fewer_than_three_of_each_is_shared() -> None:
    cases = [case(f"a{i}", fail_count=9) for i in range(4)] + [case("b0"), case("b1")] + [case("c0", score=0.4)]
    assert ids(select(cases, corners(4, 2, 1), replace(CONFIG, clusters=3, max_cases=4))) == [
        ["a0", "a1"],
        ["b0"],
        ["c0"],
    ]


def test_fewer_different_questions_than_clusters(recwarn: pytest.WarningsRecorder) -> None:
    cases = [case(f"q{i}") for i in range(7)]
    vectors = np.eye(8, dtype=np.float32)[[0] * 4 + [1] * 3]
    assert ids(select(cases, vectors, CONFIG)) == [["q0", "q1", "q2", "q3"], ["q4", "q5", "q6"]]
    assert not recwarn.list


def test_the_order_of_the_pool_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 16)).astype(np.float32)
    cases = [case(f"q{i:02}", score=i % 5 / 10, fail_count=1 + i % 3) for i in range(60)]
    expected = select(cases, vectors, CONFIG)
    assert sum(map(len, expected)) == 15
    assert {len(cluster) >= 3 for cluster in expected} == {True}
    order = random.Random(0).sample(range(60), 60)
    assert select([cases[i] for i in order], vectors[order], CONFIG) == expected
    assert expected == select(cases, vectors, CONFIG, seed=42) != select(cases, vectors, CONFIG, seed=43)
