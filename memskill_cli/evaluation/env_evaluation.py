"""Evaluation on tasks of text environments: a memory from expert trajectories for each task type, then the tasks.

Scores are the success rate and the number of steps. As in published results, steps are a mean over all tasks, in which
a task that was not solved counts with the maximum number of steps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from memskill_cli.config import Config, EnvConfig, digest
from memskill_cli.datasets.base import prepare_command
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.envs.trajectories import by_type, merge_trajectories
from memskill_cli.errors import DataError, UsageError
from memskill_cli.evaluation import methods
from memskill_cli.scoring.intervals import bootstrap_ci
from memskill_cli.types import Query, QueryResult, Trace
from memskill_cli.utils.seeding import seed_from

METHODS = ("memskill", "seed-skills", "random-skills", "all-skills", "no-memory", "rag")
"""Methods that can be used on tasks. Other systems store conversations; full context has no memory for a task type."""

SETTINGS = ("steps", "retrieval_query", "memory", "trajectories_max", "temperature", "top_p", "inventory")
"""Settings of the section ``env`` that can change a score."""

Row = dict[str, Any]


class EnvEvaluation:
    """See :class:`~memskill_cli.evaluation.kinds.EvalKind`."""

    scores = ("success",)

    def check_methods(self, dataset: str, names: Sequence[str]) -> None:
        if wrong := [name for name in names if methods.METHODS.origin(name) == "memskill" and name not in METHODS]:
            raise UsageError(
                f"{', '.join(wrong)}: cannot be used on {dataset}, where memory is built from expert trajectories",
                hint=f"choose from --method {','.join(METHODS)}",
            )

    def data_digest(self, manifest: DatasetManifest, split: str) -> str:
        """The digest of the split's tasks and of the trajectories that memory is built from."""
        if "train" not in manifest.splits:
            raise DataError(
                f"memory is built from the training games of {manifest.dataset}, but they are not prepared",
                hint=prepare_command(manifest.dataset, None, "--split", "train"),
            )
        return digest([manifest.digest_of(split), manifest.digest_of("train")])

    def identity_settings(self, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {"env": {name: table["env"][name] for name in SETTINGS}}

    def traces(
        self, split: Sequence[Trace], load: Callable[[str], Iterable[Trace]], settings: Config, limit: int
    ) -> Sequence[Trace]:
        return env_traces(load("train"), split, settings.env, dataset=settings.dataset, limit=limit, seed=settings.seed)

    def row_fields(self, result: QueryResult) -> Row:
        return env_row(result)

    def summarise(self, rows: Sequence[Row], settings: Config) -> dict[str, Any]:
        return summarise(rows, steps=settings.env.steps, resamples=settings.eval.bootstrap, seed=settings.seed)

    def measure(self, reward: str) -> str:
        return "success_rate"

    def describe_reward(self, reward: str) -> str:
        return "Share of the games of each episode that were won"


def env_traces(
    train: Iterable[Trace], split: Iterable[Trace], acting: EnvConfig, *, dataset: str, limit: int, seed: int
) -> list[Trace]:
    """One trace for each task type of ``split``: up to ``trajectories_max`` from ``train`` and all tasks of the split.

    ``seed`` decides which trajectories are drawn. With ``acting.memory`` "all" there is one trace with all trajectories
    and all tasks, as in the published code. ``limit`` is the maximum number of tasks (0: no limit); they are taken from
    the types in turn, so that a small number still has every type. A type without trajectories has an empty memory.
    """
    tasks, experts = by_type(split), by_type(train)
    chosen = _in_turn(
        {kind: [query for game in games for query in game.queries] for kind, games in tasks.items()}, limit
    )
    if acting.memory == "all":
        games = [game for known in experts.values() for game in known]
        asked = [query for queries in chosen.values() for query in queries]
        name = next(iter(tasks.values()))[0].split if tasks else ""
        return [merge_trajectories(f"{dataset}-all", dataset, name, games, asked)] if asked else []
    found = []
    for kind, queries in chosen.items():
        known = experts.get(kind, [])
        rng = random.Random(seed_from(seed, "memory", kind))  # noqa: S311 - not for secrets
        read = rng.sample(known, min(acting.trajectories_max, len(known)))
        found.append(merge_trajectories(f"{dataset}-{kind}", dataset, tasks[kind][0].split, read, queries))
    return found


def _in_turn(queries: dict[str, list[Query]], limit: int) -> dict[str, list[Query]]:
    """The first ``limit`` queries, taken from the types in turn. Types without queries are left out."""
    turns = sorted((place, kind) for kind, some in queries.items() for place in range(len(some)))
    counts = Counter(kind for _, kind in turns[: limit or None])
    return {kind: some[: counts[kind]] for kind, some in queries.items() if counts[kind]}


def env_row(answer: QueryResult) -> Row:
    """The additional fields of a task's line in ``results.jsonl``; None values if it could not be played."""
    played = answer.trajectory
    if played is None:
        return {"success": None, "steps": None, "invalid_actions": None, "opening": "", "transcript": []}
    return {
        "success": played.won,
        "steps": len(played.steps),
        "invalid_actions": played.invalid,
        "opening": played.opening,
        "transcript": [move._asdict() for move in played.steps],
    }


def summarise(rows: Sequence[Row], *, steps: int, resamples: int, seed: int) -> dict[str, Any]:
    """Success rate (0 to 1) and mean steps, overall and by task type, without tasks that could not be played.

    A task that was not solved counts with ``steps``, the maximum of a task. ``errors`` counts rows by what failed
    (memory, answer, game).
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
