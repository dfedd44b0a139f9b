"""Trajectories: whole ones packed into spans, and pairs of batches that never share a game."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.envs.trajectories import (
    Sizes,
    by_type,
    draw_pair,
    merge_trajectories,
    pack_trajectories,
    undersized_types,
)
from memskill_cli.errors import DataError
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.tokens import count_tokens

SIZES = Sizes((40, 60), (5, 8), 1.0)


def game(kind: str, number: int, words: int = 5) -> Trace:
    name = f"{kind}/{number}"
    turns = (Turn("Goal", f"goal {number}"), Turn("Environment", "room " * words), Turn("Agent", "look"))
    return Trace(
        name, "alfworld", "train", (Session(kind, "", turns),), (Query(name, name, kind, f"goal {number}", ()),)
    )


def games(**counts: int) -> dict[str, list[Trace]]:
    return by_type(game(kind, i) for kind, count in counts.items() for i in range(count))


def kinds(found: list[Trace]) -> set[str]:
    return {trace.sessions[0].label for trace in found}


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_pair_is_of_one_type_and_shares_no_game(seed: int) -> None:
    pair = draw_pair(games(heat=80, cool=70, look=90), SIZES, random.Random(seed))
    assert 40 <= len(pair.read) <= 60
    assert 5 <= len(pair.play) <= 8
    assert kinds(pair.read) == kinds(pair.play)
    assert len(kinds(pair.play)) == 1
    ids = [trace.trace_id for trace in (*pair.read, *pair.play)]
    assert len(set(ids)) == len(ids)


def test_types_differ_as_often_as_is_asked() -> None:
    pools, sizes = games(heat=80, cool=70, look=90), SIZES._replace(same_type=0.8)
    pairs = [draw_pair(pools, sizes, random.Random(seed)) for seed in range(1000)]
    same = sum(kinds(pair.read) == kinds(pair.play) for pair in pairs)
    assert 760 <= same <= 840
    assert all(len(kinds(pair.read)) == 1 for pair in pairs)
    assert {kind for pair in pairs for kind in kinds(pair.play)} == {"heat", "cool", "look"}


def test_one_generator_one_pair() -> None:
    pools = games(heat=80, cool=70)
    draws = [draw_pair(pools, SIZES, random.Random(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["heat", "cool", "look"]), st.integers(1, 12), min_size=1), st.integers(0, 99))
def test_small_sets_give_what_they_have(counts: dict[str, int], seed: int) -> None:
    pools = games(**counts)
    if sum(counts.values()) == 1:
        with pytest.raises(DataError, match="at least two"):
            draw_pair(pools, SIZES, random.Random(seed))
        return
    pair = draw_pair(pools, SIZES, random.Random(seed))
    assert pair.read
    assert pair.play
    assert not {trace.trace_id for trace in pair.read} & {trace.trace_id for trace in pair.play}
    (kind,) = kinds(pair.play)
    if counts[kind] > 1:
        assert kinds(pair.read) == {kind}
        assert len(pair.read) == counts[kind] - len(pair.play)
    else:
        assert kind not in kinds(pair.read)


def test_at_most_half_of_a_type_is_played_where_the_rest_is_read_and_all_of_it_where_not() -> None:
    wanted = Sizes((40, 40), (8, 8), 1.0)
    pair = draw_pair(games(heat=10), wanted, random.Random(0))
    assert (len(pair.play), len(pair.read)) == (5, 5)
    apart = draw_pair(games(heat=8, cool=8), wanted._replace(same_type=0.0), random.Random(0))
    assert (len(apart.play), len(apart.read)) == (8, 8)
    assert not kinds(apart.play) & kinds(apart.read)


def test_types_with_too_few_games_are_told() -> None:
    assert undersized_types(games(heat=48, cool=47, look=3), SIZES) == {"cool": 47, "look": 3}


@settings(deadline=None)
@given(st.lists(st.integers(0, 120), min_size=1, max_size=15), st.integers(20, 300))
def test_spans_hold_whole_trajectories_and_as_many_as_fit(lengths: list[int], budget: int) -> None:
    read = [game("heat", i, words) for i, words in enumerate(lengths)]
    spans = pack_trajectories(merge_trajectories("t", "alfworld", "train", read), budget)
    texts = ["\n".join(f"{turn.speaker}: {turn.text}" for turn in trace.sessions[0].turns) for trace in read]
    assert "\n\n".join(span.text for span in spans) == "\n\n".join(texts), "in order, none split, none lost"
    assert [(span.trace_id, span.index) for span in spans] == [("t", i) for i in range(len(spans))]
    for span in spans:
        assert count_tokens(span.text) <= budget or span.text in texts, "only a single one may be longer"
    for left, right in pairwise(spans):
        first = right.text.split("\n\n")[0]
        assert count_tokens(left.text) + count_tokens(first) + 1 > budget, "or the next would have fitted"


def test_two_trajectories_share_a_span_if_they_just_fit() -> None:
    """With the one token of the blank line between them."""
    both = merge_trajectories("t", "alfworld", "train", [game("heat", 1, 30), game("heat", 2, 50)])
    lengths = [count_tokens(span.text) for span in pack_trajectories(both, 1)]
    assert len(lengths) == 2
    assert len(pack_trajectories(both, sum(lengths) + 1)) == 1
    assert len(pack_trajectories(both, sum(lengths))) == 2


def test_only_the_first_spans_if_so_asked() -> None:
    read = merge_trajectories("t", "alfworld", "train", [game("heat", i, 50) for i in range(6)])
    whole = pack_trajectories(read, 100)
    assert len(whole) > 2
    assert pack_trajectories(read, 100, max_spans=2) == whole[:2]


def test_what_is_gathered_keeps_its_sessions_and_is_asked_its_queries() -> None:
    read, asked = [game("heat", 1), game("cool", 2)], game("heat", 3).queries
    trace = merge_trajectories("bank", "alfworld", "valid_seen", read, asked)
    assert [session.label for session in trace.sessions] == ["heat", "cool"]
    assert (trace.trace_id, trace.dataset, trace.split, trace.queries) == ("bank", "alfworld", "valid_seen", asked)
