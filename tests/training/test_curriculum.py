"""What an episode is made of: always the same for the same numbers, and what the benchmark's method says."""

from __future__ import annotations

import pytest

from memskill_cli.config import load
from memskill_cli.errors import UsageError
from memskill_cli.evaluation.scoring import sample_queries
from memskill_cli.records import Query, Session, Trace, Turn
from memskill_cli.training.curriculum import (
    Conversations,
    Curriculum,
    Lesson,
    Trajectories,
    check_reward,
    curriculum_of,
)

ALFWORLD = {"dataset": "alfworld", "alfworld.trajectories_min": 4, "alfworld.trajectories_max": 6}


def talk(name: str) -> Trace:
    queries = tuple(Query(f"{name}-{i}", name, "single-hop", "What?", ("that",)) for i in range(4))
    return Trace(name, "locomo", "train", (Session("1", "", (Turn("Ana", f"I am {name}."),)),), queries)


def game(kind: str, number: int) -> Trace:
    name = f"{kind}/{number}"
    turns = (Turn("Goal", name), Turn("Environment", "A room."), Turn("Agent", "look"))
    return Trace(name, "alfworld", "train", (Session(kind, "", turns),), (Query(name, name, kind, name, ()),))


TALKS = [talk(name) for name in ("a", "b", "c")]
GAMES = [game(kind, i) for kind in ("heat", "cool") for i in range(20)]


def embodied(**overrides: object) -> Trajectories:
    settings = load(overrides={**ALFWORLD, **{name.replace("__", "."): value for name, value in overrides.items()}})
    return Trajectories(settings, GAMES, lambda text: None)


def all_of(curriculum: Curriculum, outer: int = 2, inner: int = 3, batch: int = 2) -> list[Lesson]:
    return [curriculum.lesson(o, i, e) for o in range(outer) for i in range(inner) for e in range(batch)]


def test_conversations_are_read_equally_often_and_asked_a_sample() -> None:
    settings = load(overrides={"train.inner_epochs": 3, "train.batch_size": 2, "reward.query_ratio": 0.5})
    lessons = all_of(Conversations(settings, TALKS))
    names = [lesson.spans[0].trace_id for lesson in lessons]
    assert {name: names.count(name) for name in names} == {"a": 4, "b": 4, "c": 4}
    source = {trace.trace_id: trace for trace in TALKS}
    drawn = (settings.seed, names[0], 0, 0)
    assert lessons[0].queries == sample_queries(source[names[0]].queries, 0.5, drawn)
    assert len(lessons[0].queries) == 2
    assert lessons == all_of(Conversations(settings, TALKS))


def test_trajectories_are_read_and_other_games_of_their_type_are_tasks() -> None:
    curriculum = embodied()
    lessons = all_of(curriculum)
    assert len(curriculum) == 40
    for lesson in lessons:
        read = {
            line.removeprefix("Goal: ") for span in lesson.spans for line in span.text.splitlines() if "Goal" in line
        }
        assert 4 <= len(read) <= 6
        assert 5 <= len(lesson.queries) <= 8
        assert not read & {query.question for query in lesson.queries}
        assert len({name.partition("/")[0] for name in read | {query.question for query in lesson.queries}}) == 1
    assert len({lesson.queries for lesson in map(_frozen, lessons)}) == len(lessons), "each episode draws its own"


def _frozen(lesson: Lesson) -> Lesson:
    return Lesson(tuple(lesson.spans), tuple(lesson.queries))


def test_a_lesson_follows_from_seed_and_numbers_alone() -> None:
    backwards = embodied()
    numbers = [(outer, inner, episode) for outer in range(2) for inner in range(2) for episode in range(2)]
    lessons = {key: backwards.lesson(*key) for key in reversed(numbers)}
    assert {key: embodied().lesson(*key) for key in numbers} == lessons
    assert embodied(seed=7).lesson(0, 0, 0) != lessons[0, 0, 0]


def test_the_token_budget_is_the_chunk_size() -> None:
    assert len(embodied(train__chunk_size=4000, train__chunk_overlap=0).lesson(0, 0, 0).spans) == 1
    small = embodied(train__chunk_size=5, train__chunk_overlap=0).lesson(0, 0, 0).spans
    assert all(span.text.count("Goal:") == 1 for span in small)


def test_few_games_are_told_once() -> None:
    notices: list[str] = []
    curriculum = curriculum_of(load(overrides={"dataset": "alfworld"}), GAMES[:23], notices.append)
    curriculum.lesson(0, 0, 0)
    (told,) = notices
    assert "heat 20" in told
    assert "cool 3" in told


def test_there_is_nothing_to_judge_in_a_game() -> None:
    settings = load(overrides={"dataset": "alfworld", "reward.kind": "judge"})
    with pytest.raises(UsageError, match="success rate"):
        check_reward(settings)
    check_reward(load(overrides={"reward.kind": "judge"}))
