"""Evaluating on ALFWorld: a memory for each task type from expert trajectories, then the tasks of a split played.

Scores are the success rate and the steps a task took. As in published results, steps are a mean over all tasks, and a
task that was not solved counts with all the steps it was allowed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from memskill_cli.config import AlfworldConfig
from memskill_cli.envs.alfworld.trajectories import by_type, gathered
from memskill_cli.errors import UsageError
from memskill_cli.scoring.token_f1 import bootstrap_ci
from memskill_cli.types import Answer, Query, Trace
from memskill_cli.utils.seeding import seed_from

METHODS = ("memskill", "seed-skills", "random-skills", "all-skills", "no-memory", "rag")
"""Methods that mean something here. Other systems remember conversations, and full context is no memory of a type."""

Row = dict[str, Any]


def check_methods(dataset: str, names: Sequence[str]) -> None:
    """Raises UsageError for a method that makes no sense on ALFWorld."""
    if dataset == "alfworld" and (wrong := [name for name in names if name not in METHODS]):
        raise UsageError(
            f"{', '.join(wrong)}: not for ALFWorld, where memory is made of an expert's trajectories",
            hint=f"--method {','.join(METHODS)}, or some of them",
        )


def traces_of(
    train: Iterable[Trace], split: Iterable[Trace], acting: AlfworldConfig, *, limit: int, seed: int
) -> list[Trace]:
    """One trace for each task type of ``split``: up to ``trajectories_max`` from ``train`` and all tasks of the split.

    Which trajectories follows from ``seed``. With ``acting.memory`` "all" it is one trace of all trajectories and all
    tasks, as published. A ``limit`` (0: none) takes tasks of all types in turn, so that a few are still of every type.
    A type without trajectories has an empty memory.
    """
    tasks, experts = by_type(split), by_type(train)
    chosen = _in_turn(
        {kind: [query for game in games for query in game.queries] for kind, games in tasks.items()}, limit
    )
    if acting.memory == "all":
        games = [game for known in experts.values() for game in known]
        asked = [query for queries in chosen.values() for query in queries]
        return [gathered("alfworld-all", next(iter(tasks.values()))[0].split, games, asked)] if asked else []
    found = []
    for kind, queries in chosen.items():
        known = experts.get(kind, [])
        rng = random.Random(seed_from(seed, "memory", kind))  # noqa: S311 - not for secrets
        read = rng.sample(known, min(acting.trajectories_max, len(known)))
        found.append(gathered(f"alfworld-{kind}", tasks[kind][0].split, read, queries))
    return found


def _in_turn(queries: dict[str, list[Query]], limit: int) -> dict[str, list[Query]]:
    """The first ``limit`` queries when types take turns; types without any are left out."""
    turns = sorted((place, kind) for kind, some in queries.items() for place in range(len(some)))
    counts = Counter(kind for _, kind in turns[: limit or None])
    return {kind: some[: counts[kind]] for kind, some in queries.items() if counts[kind]}


def played_row(answer: Answer) -> Row:
    """What a line of ``results.jsonl`` says of a task besides; None where it could not be played."""
    played = answer.played
    if played is None:
        return {"success": None, "steps": None, "invalid_actions": None, "opening": "", "transcript": []}
    return {
        "success": played.won,
        "steps": len(played.moves),
        "invalid_actions": played.invalid,
        "opening": played.opening,
        "transcript": [move._asdict() for move in played.moves],
    }


def summarise(rows: Sequence[Row], *, steps: int, resamples: int, seed: int) -> dict[str, Any]:
    """Success rate (0 to 1) and mean steps, overall and by task type; a task that could not be played is in neither.

    A failure counts with ``steps``, all that a task may take. ``errors`` counts rows by what failed (memory, answer,
    game).
    """
    kinds = sorted({row["category"] for row in rows})
    return {
        **_numbers(rows, steps, resamples, seed),
        "by_task_type": {
            kind: _numbers([row for row in rows if row["category"] == kind], steps, resamples, seed) for kind in kinds
        },
        "errors": dict(Counter(row["error"].partition(":")[0] for row in rows if row["error"])),
    }


def _numbers(rows: Sequence[Row], limit: int, resamples: int, seed: int) -> dict[str, Any]:
    played = [row for row in rows if row["success"] is not None]
    scores = {
        "success_rate": [float(row["success"]) for row in played],
        "steps": [float(row["steps"] if row["success"] else limit) for row in played],
    }
    return {
        "queries": len(rows),
        **{name: sum(some) / len(some) if some else None for name, some in scores.items()},
        "invalid_actions": sum(row["invalid_actions"] for row in played),
        "ci95": {
            name: list(bootstrap_ci(some, resamples=resamples, seed=seed)) if some else None
            for name, some in scores.items()
        },
    }
