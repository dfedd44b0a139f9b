"""Credit by evidence, and other credit assignments that are given the queries. All values are computed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.config import MemoryConfig, RewardConfig
from memskill_cli.config.extension_points import CREDITS
from memskill_cli.rollout.evidence_credit import EvidenceCredit
from memskill_cli.rollout.rewards import (
    F1Reward,
    QueryCredit,
    ScoredQuery,
    episode_reward,
    register_credit,
    score_queries,
    step_shares,
)
from memskill_cli.types import (
    Action,
    ExecutorResult,
    MemoryItem,
    MemoryVersion,
    Provenance,
    Query,
    QueryResult,
    Retrieved,
    SkillSelection,
    Span,
    Step,
)

from .test_episode import Models, episode, query

EVIDENCE = RewardConfig(credit="evidence", final_share=0.5, decay=0.5)
"""The spread over three steps: 0.5 (1, 2, 4) / 7 + (0, 0, 0.5) = (1, 2, 11) / 14."""
SPANS = [Span("t", index, "") for index in range(3)]
STEP = Step(None, SkillSelection((0,), 0.0, 0.0), ExecutorResult((), {}), 0.0)  # type: ignore[arg-type]


def memory(name: str, *versions: tuple[int, str]) -> MemoryItem:
    """A memory with these versions, each from the span with this index."""
    history = tuple(
        MemoryVersion(Action.UPDATE if number else Action.INSERT, text, Provenance("t", index, (), index))
        for number, (index, text) in enumerate(versions)
    )
    return MemoryItem(name, versions[-1][1], history)


def source(ref: str) -> MemoryItem:
    return MemoryItem(ref, "as it was said", ())


def answered(score: float | None, *found: MemoryItem) -> QueryResult:
    asked = Query("q", "t", "1", "What?", ("that",))
    return QueryResult(asked, "that", tuple(Retrieved(item, 1.0) for item in found), score, error="" if score else "no")


def shares(*answers: QueryResult, spans: Sequence[Span] = SPANS) -> list[float]:
    scored = score_queries(answers, F1Reward(), spans)
    return step_shares(episode_reward(scored), [STEP] * len(spans), EVIDENCE, scored)


def test_a_score_goes_to_the_steps_whose_memories_were_retrieved() -> None:
    """Of two queries the first has 0.8 / 2 for the one step; the second 0.6 / 2, a half of it for each of two steps."""
    first = answered(0.8, memory("m1", (0, "Ivo paints")))
    second = answered(0.6, memory("m1", (0, "Ivo paints")), memory("m2", (2, "Ivo has a cat")))
    assert shares(first, second) == pytest.approx([0.4 + 0.15, 0.0, 0.15])


def test_steps_and_not_memories_divide_a_score() -> None:
    """Step 0 wrote two of three memories, and gets a half."""
    found = [memory("m1", (0, "Ivo paints")), memory("m2", (0, "Ivo sings")), memory("m3", (1, "Ivo has a cat"))]
    assert shares(answered(1.0, *found)) == pytest.approx([0.5, 0.5, 0.0])


def test_a_query_without_a_written_memory_gives_its_part_by_the_spread() -> None:
    """Also if sources were retrieved: every policy keeps them."""
    by_spread = [0.25 * part / 14 for part in (1, 2, 11)]
    assert shares(answered(0.5), answered(0.0)) == pytest.approx(by_spread)
    assert shares(answered(0.5, source("s1:0")), answered(0.0)) == pytest.approx(by_spread)
    found = shares(answered(0.5), answered(1.0, source("s1:2"), memory("m1", (1, "Ivo paints"))))
    assert found == pytest.approx([by_spread[0], by_spread[1] + 0.5, by_spread[2]])


def test_a_query_without_a_score_is_left_out() -> None:
    """The part of the other query is its whole score: R is the mean over one."""
    assert shares(answered(None, memory("m1", (0, "x"))), answered(0.9, memory("m2", (1, "y")))) == pytest.approx(
        [0.0, 0.9, 0.0]
    )


def test_a_step_whose_text_was_replaced_wrote_nothing_of_the_memory() -> None:
    kept = memory("m1", (0, "Ivo paints houses"), (2, "Ivo paints houses and boats"))
    replaced = memory("m2", (0, "Ivo paints houses"), (1, "Mia has a cat"))
    assert shares(answered(1.0, kept)) == pytest.approx([0.5, 0.0, 0.5])
    assert shares(answered(1.0, replaced)) == pytest.approx([0.0, 1.0, 0.0])


def test_a_step_is_found_by_the_index_of_its_span() -> None:
    """Spans whose indices do not begin with 0; a memory of a span that was not read counts for no step."""
    spans = [Span("t", 5, ""), Span("t", 7, "")]
    assert shares(answered(1.0, memory("m1", (7, "x"))), spans=spans) == pytest.approx([0.0, 1.0])
    found = score_queries([answered(1.0, memory("m1", (1, "x")))], F1Reward(), spans)
    assert found[0].writers == frozenset()


SCORED = st.builds(
    ScoredQuery,
    st.just(answered(1.0)),
    st.floats(0, 1),
    st.frozensets(st.integers(0, 4), max_size=5),
)


@given(st.lists(SCORED, min_size=1, max_size=6))
def test_nothing_of_the_reward_is_lost(queries: list[ScoredQuery]) -> None:
    found = EvidenceCredit().shares(episode_reward(queries), [STEP] * 5, queries, RewardConfig())
    assert sum(found) == pytest.approx(episode_reward(queries))
    assert min(found) >= 0


def test_an_episode_gives_the_credit_that_the_setting_names() -> None:
    """One memory is retrieved, that of the second step; the process rewards are added as always."""
    asked = dataclasses.replace(query(1), question="Who keeps bees?")
    one = MemoryConfig(num_memories=1, sources=False, retriever="dense")
    found = episode(Models(), [asked], memory=one, reward=RewardConfig(credit="evidence"))
    assert [step.reward for step in found.steps] == pytest.approx([0.1 / 3, 1.0 + 0.1 / 3, 0.1 / 3])


class Best(QueryCredit):
    """All of R to the steps that the best query names."""

    def shares(
        self, reward: float, steps: Sequence[Step], queries: Sequence[ScoredQuery], settings: RewardConfig
    ) -> Sequence[float]:
        best = max(queries, key=lambda query: query.score)
        return [reward / len(best.writers) if step in best.writers else 0.0 for step in range(len(steps))]


@pytest.fixture(params=[Best, Best()], ids=["class", "instance"])
def best(request: pytest.FixtureRequest) -> Iterator[str]:
    register_credit("best")(request.param)
    yield "best"
    CREDITS.unregister("best")


def test_a_plug_in_is_given_the_queries_as_a_class_and_as_an_instance(best: str) -> None:
    scored = [ScoredQuery(answered(0.2), 0.2, frozenset({0})), ScoredQuery(answered(0.6), 0.6, frozenset({1, 2}))]
    assert step_shares(0.4, [STEP] * 3, RewardConfig(credit=best), scored) == [0.0, 0.2, 0.2]


def test_a_function_of_three_arguments_is_not_given_the_queries() -> None:
    seen: list[Any] = []

    @register_credit("plain")
    def plain(*arguments: Any) -> list[float]:
        seen.append(arguments)
        return [0.1, 0.2]

    try:
        settings = RewardConfig(credit="plain")
        assert step_shares(0.3, [STEP] * 2, settings, [ScoredQuery(answered(0.3), 0.3)]) == [0.1, 0.2]
    finally:
        CREDITS.unregister("plain")
    assert seen == [(0.3, [STEP] * 2, settings)]
