"""The stratified sample of a trace's queries: the number for each category, and which queries."""

import hashlib
import math
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.training.query_sampling import sample_queries
from memskill_cli.types import Query


def query(i, category="single-hop", gold_answers=("x",), scored=True):
    return Query(f"q{i}", "t", category, "?", gold_answers, scored=scored)


SIZES = {"single-hop": 60, "temporal": 25, "multi-hop": 14, "open-domain": 1}
QUERIES = [query(f"{category}{i}", category) for category, n in SIZES.items() for i in range(n)]


def counts(sample):
    return {category: sum(q.category == category for q in sample) for category in SIZES}


def test_a_sample_is_stratified():
    # 10 of 100: one each, then 6 over what is left (59, 24, 13, 0 of 96): 3.69, 1.5, 0.81, 0 -> 3+1, 1, 0+1, 0
    assert counts(sample_queries(QUERIES, 0.1, (1, "t", 0, 0))) == {
        "single-hop": 5,
        "temporal": 2,
        "multi-hop": 2,
        "open-domain": 1,
    }


def test_the_rest_is_shared_by_size_not_by_what_a_category_has_left():
    # 5 of 10: one each, then 3 by size: 0.6 and 2.4 -> the third goes to the larger remainder, the small category
    queries = [query(f"{category}{i}", category) for category, n in (("a", 2), ("b", 8)) for i in range(n)]
    drawn = [q.category for q in sample_queries(queries, 0.5, (1,))]
    assert (drawn.count("a"), drawn.count("b")) == (2, 3)


def test_no_category_gives_more_than_it_has():
    # 9 of 10: one each, then 6 by size: 0.6, 0.6 and 4.8 -> the small ones have nothing left to give
    queries = [query(f"{category}{i}", category) for category, n in (("a", 1), ("b", 1), ("c", 8)) for i in range(n)]
    drawn = [q.category for q in sample_queries(queries, 0.9, (1,))]
    assert (drawn.count("a"), drawn.count("b"), drawn.count("c")) == (1, 1, 7)


def test_what_is_left_goes_by_the_largest_remainder():
    # 5 of 10: one each, then 3 by size: 2.1 and 0.9 -> 2, 0 and the last to the second category
    queries = [query(f"{category}{i}", category) for category, n in (("a", 7), ("b", 3)) for i in range(n)]
    drawn = [q.category for q in sample_queries(queries, 0.5, (1,))]
    assert (drawn.count("a"), drawn.count("b")) == (3, 2)


def test_another_version_draws_the_same():
    """A run can be resumed with a later version, which must draw the same for the same seed."""
    group = [query(name) for name in ("1", "2", "3", "4", "\ud83d")]

    def digest(q):
        return hashlib.sha256(f"7\x1ftalk\x1f3\x1f{q.query_id}".encode("utf-8", "surrogatepass")).digest()

    expected = sorted(group, key=digest)[:2]
    assert {q.query_id for q in sample_queries(group, 0.4, (7, "talk", 3))} == {q.query_id for q in expected}


def test_a_tiny_ratio_still_asks_every_category():
    assert counts(sample_queries(QUERIES, 0.001, (1,))) == dict.fromkeys(SIZES, 1)


def test_rounding_up_is_exact():
    assert len(sample_queries(QUERIES, 0.07, (1,))) == 7  # 0.07 * 100 is 7.000000000000001


def test_the_whole_is_the_scored_queries():
    unscored = query("adv", "adversarial", scored=False)
    assert sample_queries([*QUERIES, unscored], 1.0, (1,)) == QUERIES
    assert sample_queries([unscored], 0.5, (1,)) == []


def test_the_key_decides_the_draw():
    first, second = (sample_queries(QUERIES, 0.2, (1, "t", 0, inner)) for inner in (0, 1))
    assert first == sample_queries(QUERIES, 0.2, (1, "t", 0, 0))
    assert first != second
    backwards = sample_queries(QUERIES[::-1], 0.2, (1, "t", 0, 0))
    assert backwards[::-1] == first


def test_every_query_has_the_same_chance():
    group = [query(i) for i in range(10)]
    drawn = [q.query_id for inner in range(1000) for q in sample_queries(group, 0.3, (7, inner))]
    assert all(230 <= drawn.count(q.query_id) <= 370 for q in group)  # 300 expected, sd 14.5


def test_the_draw_is_the_same_in_another_process():
    code = (
        "from memskill_cli.training.query_sampling import sample_queries; from memskill_cli.types import Query\n"
        "qs = [Query(f'q{i}', 't', 'c', '?', ('x',)) for i in range(30)]\n"
        "print([q.query_id for q in sample_queries(qs, 0.2, (3, 't', 1, 2))])"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(outs) == 1
    assert outs.pop().count("q") == 6


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=60),
    st.floats(0.001, 1.0),
    st.integers(0, 5),
)
def test_any_sample_keeps_its_promises(kinds, ratio, seed):
    queries = [query(i, category, scored=scored) for i, (category, scored) in enumerate(kinds)]
    scored = [q for q in queries if q.scored]
    sample = sample_queries(queries, ratio, (seed,))
    categories = {q.category for q in scored}
    assert [q for q in queries if q in sample] == sample
    assert {q.category for q in sample} == categories
    assert len(sample) in (
        max(len(categories), math.ceil(ratio * len(scored))),
        max(len(categories), math.ceil(ratio * len(scored) - 1e-9)),
    )
