"""The spans and queries of episodes: the same for the same numbers, and as the paper describes for each dataset."""

from __future__ import annotations

import hashlib
import random

import pytest

from memskill_cli.config import load
from memskill_cli.envs.trajectories import Sizes, by_type, draw_pair
from memskill_cli.errors import UsageError
from memskill_cli.training.episode_sampler import (
    EnvSampler,
    EpisodeSampler,
    EpisodeSpec,
    QASampler,
    check_reward,
    make_sampler,
)
from memskill_cli.training.query_sampling import sample_queries
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.tokens import count_tokens

ALFWORLD = {"dataset": "alfworld", "env.trajectories_min": 4, "env.trajectories_max": 6}


def talk(name: str) -> Trace:
    queries = tuple(Query(f"{name}-{i}", name, "single-hop", "What?", ("that",)) for i in range(4))
    return Trace(name, "locomo", "train", (Session("1", "", (Turn("Ana", f"I am {name}."),)),), queries)


def game(kind: str, number: int) -> Trace:
    name = f"{kind}/{number}"
    turns = (Turn("Goal", name), Turn("Environment", "A room."), Turn("Agent", "look"))
    return Trace(name, "alfworld", "train", (Session(kind, "", turns),), (Query(name, name, kind, name, ()),))


TALKS = [talk(name) for name in ("a", "b", "c")]
GAMES = [game(kind, i) for kind in ("heat", "cool") for i in range(20)]


def embodied(**overrides: object) -> EnvSampler:
    settings = load(overrides={**ALFWORLD, **{name.replace("__", "."): value for name, value in overrides.items()}})
    return EnvSampler(settings, GAMES, lambda text: None)


def all_of(sampler: EpisodeSampler, outer: int = 2, inner: int = 3, batch: int = 2) -> list[EpisodeSpec]:
    return [sampler.episode(o, i, e) for o in range(outer) for i in range(inner) for e in range(batch)]


def test_conversations_are_read_equally_often_and_asked_a_sample() -> None:
    settings = load(overrides={"train.inner_epochs": 3, "train.batch_size": 2, "reward.query_ratio": 0.5})
    episode_specs = all_of(QASampler(settings, TALKS))
    names = [episode_spec.spans[0].trace_id for episode_spec in episode_specs]
    assert {name: names.count(name) for name in names} == {"a": 4, "b": 4, "c": 4}
    source = {trace.trace_id: trace for trace in TALKS}
    drawn = (settings.seed, names[0], 0, 0)
    assert episode_specs[0].queries == sample_queries(source[names[0]].queries, 0.5, drawn)
    assert len(episode_specs[0].queries) == 2
    assert episode_specs == all_of(QASampler(settings, TALKS))
    assert episode_specs == all_of(make_sampler(settings, TALKS, lambda text: None))


def test_the_episodes_of_a_group_read_one_trace_and_ask_the_same_queries() -> None:
    """Three groups of two episodes have the traces and queries of three episodes without groups."""
    sizes = {"train.inner_epochs": 3, "reward.query_ratio": 0.5}
    grouped = load(overrides={**sizes, "train.algorithm": "grpo", "train.group_size": 2, "train.batch_size": 6})
    alone = load(overrides={**sizes, "train.batch_size": 3})
    single, pairs = all_of(QASampler(alone, TALKS), batch=3), all_of(QASampler(grouped, TALKS), batch=6)
    assert pairs == [one for one in single for _ in range(2)]
    assert len({one.spans[0].trace_id for one in pairs[:6]}) == 3
    ignored = load(overrides={**sizes, "train.group_size": 2, "train.batch_size": 3})
    assert all_of(QASampler(ignored, TALKS), batch=3) == single, "PPO has no groups"


def test_the_episodes_of_a_group_read_the_same_trajectories_and_play_the_same_tasks() -> None:
    grouped = embodied(train__algorithm="grpo", train__group_size=2, train__batch_size=4)
    specs = [grouped.episode(1, 0, number) for number in range(4)]
    assert specs[0] == specs[1] == embodied().episode(1, 0, 0)
    assert specs[2] == specs[3] == embodied().episode(1, 0, 1)


def test_trajectories_have_the_curriculum_too() -> None:
    """Small spans, one for each trajectory: 4 to 6, of which two are read at first. All tasks are played."""
    small = {"train__chunk_size": 5, "train__chunk_overlap": 0}
    whole, first = embodied(**small).episode(0, 0, 0), embodied(**small, train__curriculum=3).episode(0, 0, 0)
    assert first == EpisodeSpec(whole.spans[:2], whole.queries)


def test_another_seed_reads_conversations_in_another_order() -> None:
    orders = set()
    for seed in range(6):
        settings = load(overrides={"seed": seed, "train.inner_epochs": 3, "train.batch_size": 1})
        orders.add(
            tuple(episode_spec.spans[0].trace_id for episode_spec in all_of(QASampler(settings, TALKS), 1, 3, 1))
        )
    assert len(orders) > 1
    assert all(set(order) == {"a", "b", "c"} for order in orders)


def test_conversations_are_cut_as_the_settings_say() -> None:
    """Windows of 10 tokens with a step of 6 (here each word is a token), up to the maximum number of spans."""
    words = " ".join(["word"] * 100)
    trace = Trace("a", "locomo", "train", (Session("1", "", (Turn("Ana", words),)),), talk("a").queries)
    cutting = {"train.span_mode": "fixed-length", "train.chunk_size": 10, "train.chunk_overlap": 4}
    spans = QASampler(load(overrides=cutting), [trace]).episode(0, 0, 0).spans
    assert {count_tokens(span.text) for span in spans[:-1]} == {10}
    tokens = count_tokens(f"Ana: {words}")
    assert len(spans) == 1 + -(-(tokens - 10) // 6)
    few = QASampler(load(overrides={**cutting, "train.max_spans": 3}), [trace]).episode(0, 0, 0).spans
    assert few == spans[:3]


def test_trajectories_are_read_and_other_games_of_their_type_are_tasks() -> None:
    sampler = embodied()
    episode_specs = all_of(sampler)
    assert len(sampler) == 40
    for episode_spec in episode_specs:
        read = {
            line.removeprefix("Goal: ")
            for span in episode_spec.spans
            for line in span.text.splitlines()
            if "Goal" in line
        }
        assert 4 <= len(read) <= 6
        assert 5 <= len(episode_spec.queries) <= 8
        assert not read & {query.question for query in episode_spec.queries}
        assert len({name.partition("/")[0] for name in read | {query.question for query in episode_spec.queries}}) == 1
    assert len({episode_spec.queries for episode_spec in map(_frozen, episode_specs)}) == len(episode_specs), (
        "each episode draws its own"
    )


def _frozen(episode_spec: EpisodeSpec) -> EpisodeSpec:
    return EpisodeSpec(tuple(episode_spec.spans), tuple(episode_spec.queries))


def test_a_lesson_follows_from_seed_and_numbers_alone() -> None:
    backwards = embodied()
    numbers = [(outer, inner, episode) for outer in range(2) for inner in range(2) for episode in range(2)]
    episode_specs = {key: backwards.episode(*key) for key in reversed(numbers)}
    assert {key: embodied().episode(*key) for key in numbers} == episode_specs
    assert embodied(seed=7).episode(0, 0, 0) != episode_specs[0, 0, 0]


def test_another_version_draws_the_same_pair() -> None:
    """A run can be resumed with a later version, which must draw the same for the same seed."""
    sampler = embodied(seed=42)
    sizes = Sizes((4, 6), (5, 8), 1.0)
    digest = hashlib.sha256(b"42\x1fpair\x1f1\x1f2\x1f0").hexdigest()
    pair = draw_pair(by_type(GAMES), sizes, random.Random(int(digest[:16], 16) // 2))
    assert sampler.episode(1, 2, 0).queries == [query for game in pair.play for query in game.queries]


def test_the_token_budget_is_the_chunk_size() -> None:
    assert len(embodied(train__chunk_size=4000, train__chunk_overlap=0).episode(0, 0, 0).spans) == 1
    small = embodied(train__chunk_size=5, train__chunk_overlap=0).episode(0, 0, 0).spans
    assert 4 <= len(small) <= 6, "one for each trajectory"
    assert all(span.text.count("Goal:") == 1 for span in small)


def test_only_the_first_spans_of_trajectories_if_so_asked() -> None:
    small = {"train__chunk_size": 5, "train__chunk_overlap": 0}
    spans = embodied(**small).episode(0, 0, 0).spans
    assert embodied(**small, train__max_spans=2).episode(0, 0, 0).spans == spans[:2]


def test_what_is_read_in_an_episode_has_a_name_of_its_own() -> None:
    names = {span.trace_id for episode_spec in all_of(embodied()) for span in episode_spec.spans}
    assert names == {f"trajectories-{o}-{i}-{e}" for o in range(2) for i in range(3) for e in range(2)}


def test_few_games_are_told_once() -> None:
    notices: list[str] = []
    sampler = make_sampler(load(overrides={"dataset": "alfworld"}), GAMES[:23], notices.append)
    sampler.episode(0, 0, 0)
    (told,) = notices
    assert "cool 3, heat 20" in told


def test_there_is_nothing_to_judge_in_a_game() -> None:
    settings = load(overrides={"dataset": "alfworld", "reward.kind": "judge"})
    with pytest.raises(UsageError, match="success rate") as error:
        check_reward(settings)
    assert error.value.hint == "--reward f1"
    check_reward(load(overrides={"dataset": "alfworld", "reward.kind": "f1"}))
    check_reward(load(overrides={"reward.kind": "judge"}))
