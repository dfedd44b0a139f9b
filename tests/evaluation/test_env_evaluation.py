"""Evaluation on ALFWorld: the choice of trajectories and tasks, and the summary."""

from __future__ import annotations

from typing import Literal

import pytest

from memskill_cli.config import EnvConfig, load
from memskill_cli.datasets.registry import get
from memskill_cli.errors import UsageError
from memskill_cli.evaluation.env_evaluation import env_row, env_traces, summarise
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.spec import EvalSpec, evaluation_id, settings_digest
from memskill_cli.types import EnvStep, EnvTrajectory, Query, QueryResult, Session, Trace, Turn


def game(split: str, kind: str, number: int) -> Trace:
    name = f"{split}/{kind}/{number}"
    query = Query(name, name, kind, f"goal {name}", ())
    return Trace(name, "alfworld", split, (Session(kind, "", (Turn("Goal", name),)),), (query,))


TRAIN = [game("train", kind, i) for kind in ("heat", "cool") for i in range(10)]
TASKS = [game("valid_seen", kind, i) for kind, count in (("cool", 4), ("heat", 2), ("look", 3)) for i in range(count)]


def made(*, trajectories: int = 6, memory: Literal["by-type", "all"] = "by-type", **more: int) -> list[Trace]:
    acting = EnvConfig(trajectories_max=trajectories, memory=memory)
    return env_traces(TRAIN, TASKS, acting, dataset="alfworld", **{"limit": 0, "seed": 1, **more})


def test_a_memory_for_each_type_and_all_its_tasks() -> None:
    cool, heat, look = made()
    assert [len(trace.sessions) for trace in (cool, heat, look)] == [6, 6, 0], "no memory without trajectories"
    assert {session.label for session in cool.sessions} == {"cool"}
    assert [query.query_id for query in heat.queries] == ["valid_seen/heat/0", "valid_seen/heat/1"]
    read = {turn.text for trace in (cool, heat) for session in trace.sessions for turn in session.turns}
    assert all(name.startswith("train/") for name in read)


def test_the_choice_follows_from_the_seed() -> None:
    assert made() == made()
    assert made(seed=2) != made()
    assert len(made(trajectories=60)[0].sessions) == 10


def test_the_published_memory_holds_all_trajectories_and_is_asked_all_tasks() -> None:
    (whole,) = made(memory="all")
    read = sorted(turn.text for session in whole.sessions for turn in session.turns)
    assert read == sorted(trace.trace_id for trace in TRAIN)
    assert {query.query_id for query in whole.queries} == {trace.trace_id for trace in TASKS}


@pytest.mark.parametrize(("limit", "counts"), [(3, [1, 1, 1]), (5, [2, 2, 1]), (8, [3, 2, 3]), (1, [1])])
def test_a_limit_takes_types_in_turn(limit: int, counts: list[int]) -> None:
    assert [len(trace.queries) for trace in made(limit=limit)] == counts


def row(kind: str, won: bool | None, steps: int = 0, invalid: int = 0) -> dict[str, object]:
    query = Query("q", "q", kind, "goal", ())
    if won is None:
        return {
            "category": kind,
            "error": "game: died",
            **env_row(QueryResult(query, "", (), None, error="game: died")),
        }
    moves = [EnvStep("look", "A room.", place >= invalid) for place in range(steps)]
    played = EnvTrajectory("An opening.", tuple(moves), won)
    return {"category": kind, "error": "", **env_row(QueryResult(query, "", (), float(won), trajectory=played))}


def test_failures_count_with_all_steps_and_broken_games_not_at_all() -> None:
    rows = [row("heat", True, 10), row("heat", False, 50, 3), row("heat", None), row("cool", True, 20, 1)]
    summary = summarise(rows, steps=50, resamples=200, seed=0)
    assert summary["queries"] == 4
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["steps"] == pytest.approx((10 + 50 + 20) / 3)
    assert summary["invalid_actions"] == 4
    assert summary["errors"] == {"game": 1}
    heat, cool = summary["by_task_type"]["heat"], summary["by_task_type"]["cool"]
    assert (heat["queries"], heat["success_rate"], heat["steps"]) == (3, 0.5, 30)
    assert (cool["success_rate"], cool["steps"], cool["invalid_actions"]) == (1, 20, 1)
    low, high = summary["ci95"]["success_rate"]
    assert 0 <= low <= 2 / 3 <= high <= 1


def test_nothing_played_has_no_scores() -> None:
    summary = summarise([row("heat", None)], steps=50, resamples=10, seed=0)
    assert (summary["success_rate"], summary["steps"], summary["ci95"]["steps"]) == (None, None, None)


def test_a_row_has_the_whole_transcript() -> None:
    told = row("heat", False, 2, 1)
    assert told["opening"] == "An opening."
    assert told["transcript"] == [
        {"command": "look", "observation": "A room.", "valid": False},
        {"command": "look", "observation": "A room.", "valid": True},
    ]
    assert (told["success"], told["steps"], told["invalid_actions"]) == (False, 2, 1)


def test_methods_that_make_no_sense_are_refused() -> None:
    tasks = kind_of("alfworld")
    tasks.check_methods("alfworld", ["memskill", "no-memory", "rag", "random-skills"])
    kind_of("locomo").check_methods("locomo", ["full-context"])
    for name in ("full-context", "mem0", "langmem"):
        with pytest.raises(UsageError, match=name):
            tasks.check_methods("alfworld", ["memskill", name])


def named(**overrides: object) -> str:
    names = {name.replace("__", "."): value for name, value in overrides.items()}
    settings = load(overrides={"dataset": "alfworld", **names})
    return evaluation_id(
        EvalSpec("alfworld", "valid_seen", "memskill", "data"), settings, EvaluatedPolicy.of(None, settings)
    )


def test_what_names_an_evaluation() -> None:
    assert get("alfworld").default_split == "valid_seen"
    assert get("locomo").default_split == "test"
    for name, value in (("steps", 30), ("retrieval_query", "observation"), ("trajectories_max", 50)):
        assert named(**{f"env__{name}": value}) != named(), name
    for name, value in (("workers", 3), ("step_timeout", 9.0), ("tasks_max", 6), ("same_type", 0.8)):
        assert named(**{f"env__{name}": value}) == named(), name


def test_the_digest_of_settings_is_that_of_version_01() -> None:
    """Its section was called ``alfworld``. Evaluations of that version are found by their names."""
    settings = load(overrides={"dataset": "alfworld"})
    assert settings_digest(settings, "no-memory") == "355f7a3ea79e"
    assert settings_digest(load(overrides={"dataset": "alfworld", "env.steps": 30}), "no-memory") == "f1f8766ca32e"
