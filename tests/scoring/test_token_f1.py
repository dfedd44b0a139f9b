"""Scores worked by hand, and what must hold of any text."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memskill_cli.scoring.token_f1 import (
    bootstrap_ci,
    exact_match,
    extract_answer,
    hotpot_f1,
    locomo_f1,
    normalise,
    sample_queries,
    score_f1,
    token_f1,
)
from memskill_cli.types import Query

REAL = Path(__file__).parents[2].parent / "shared/data/locomo/locomo10.json"


def query(i, category="single-hop", truths=("x",), scored=True):
    return Query(f"q{i}", "t", category, "?", truths, scored=scored)


def test_characters_without_any_width_are_no_part_of_a_word():
    assert normalise("soft\u00adware zero\u200bwidth") == ["software", "zerowidth"]


def test_normalisation():
    assert normalise("The 1,000 cats, and a Dog's “bed”!") == ["1000", "cats", "dogs", "bed"]


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        ("running the cats", "a cat runs", 1.0),  # run cat / cat run
        ("the cat sat", "cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # a multiset: one cat in common
        ("7 May 2023", "May 7, 2023", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),
        ("an island", "islands", 1.0),  # words are dropped, not letters
    ],
)
def test_token_f1(prediction, truth, f1):
    assert token_f1(prediction, truth) == pytest.approx(f1)


def test_multi_hop_answers_are_lists():
    # "pottery" is found, "long hikes" half of it, "camping" not at all
    assert locomo_f1("hikes, pottery", "pottery, long hikes, camping", "multi-hop") == pytest.approx(
        (1 + 2 / 3 + 0) / 3
    )
    assert locomo_f1("pottery, dancing, chess", "pottery", "multi-hop") == 1.0
    assert locomo_f1("pottery, dancing, chess", "pottery", "single-hop") == pytest.approx(0.5)
    assert locomo_f1(" , ", "pottery", "multi-hop") == 0.0


def test_open_domain_truths_end_at_the_semicolon():
    truth = "likely yes; she said so twice"
    assert locomo_f1("Likely yes", truth, "open-domain") == 1.0
    assert locomo_f1("Likely yes", truth, "temporal") < 1.0


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("I think\n<answer> Paris </answer> because", "Paris"),
        ("**Answer:**\nParis", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("I put it in <answer></answer> tags. Answer: Paris", "Paris"),
        ("<answer></answer>", ""),
        ("<answer>Paris</answer> or <answer>Rome</answer>", "Paris"),
        ("in <answer></answer> tags: <Answer>Rome</ANSWER>", "Rome"),
        ("so <answer>Rome", "Rome"),
        ("so <Answer>New\nYork", "New\nYork"),
        ("Reason: x.\nAnswer: Oslo", "Oslo"),
        (" Oslo ", "Oslo"),
    ],
)
def test_the_answer_in_a_reply(reply, answer):
    assert extract_answer(reply) == answer


def test_hotpot_takes_the_best_of_all_answers():
    assert hotpot_f1("<answer>New York City</answer>", ["NYC", "New York City"]) == 1.0


def test_each_dataset_has_its_rule():
    assert score_f1("locomo", query(0, "open-domain", ("yes; why",)), "yes") == 1.0
    assert score_f1("hotpotqa", query(0, "", ("no", "yes")), "Hm. <answer>Yes</answer>") == 1.0
    assert score_f1("longmemeval", query(0, "", ("cat", "black cat")), "black cat") == 1.0


def test_exact_match_ignores_what_normalisation_drops():
    assert exact_match("The Cat!", "cat")
    assert not exact_match("cats", "cat")


@given(st.text(), st.text())
def test_token_f1_of_anything(a, b):
    assert 0.0 <= token_f1(a, b) <= 1.0
    assert token_f1(a, b) == token_f1(b, a)


@given(st.text())
def test_a_text_is_like_itself(text):
    assume(normalise(text))
    assert token_f1(text, text) == 1.0
    assert exact_match(text, text)


# --- intervals ---------------------------------------------------------------------------------------------------


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


# --- samples -----------------------------------------------------------------------------------------------------

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
    """A run may go on under a later version: what its seed draws must not change with it."""
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
        "from memskill_cli.scoring.token_f1 import sample_queries; from memskill_cli.types import Query\n"
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


@pytest.mark.skipif(not REAL.exists(), reason="the real LoCoMo is not here")
def test_every_real_truth_is_like_itself():
    names = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
    for conversation in json.loads(REAL.read_text("utf-8")):
        for item in conversation["qa"]:
            if item["category"] in names:
                truth, category = str(item["answer"]), names[item["category"]]
                answer = truth.split(";")[0] if category == "open-domain" else truth
                assert locomo_f1(answer, truth, category) == 1.0, (conversation["sample_id"], item)
