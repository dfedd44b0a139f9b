"""Look at the runs of a folder: list them, describe one, compare two, delete them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import config
from memskill_cli.errors import RunError
from memskill_cli.evaluation.comparison import differences
from memskill_cli.runs.run_dir import RunDir, created_at, find_run
from memskill_cli.skills import stages
from memskill_cli.utils import files

SAME = ("dataset", "split", "data_digest", "limit", "include_abstention", "variant")
"""Fields of ``summary.json`` that two evaluations must share to be compared."""


@dataclass(frozen=True)
class RunFacts:
    """One run, as a table shows it. ``problem`` says why it cannot be read; then the other fields are empty."""

    name: str
    dataset: str = ""
    status: str = ""
    created: str = ""
    inner_epochs: int = 0
    best_reward: float | None = None
    evaluations: int = 0
    cost_usd: float = 0.0
    megabytes: float = 0.0
    problem: str = ""


def all_runs(runs_dir: Path) -> list[RunFacts]:
    """The runs of a folder, the newest first. A damaged run is listed with its problem."""
    found = sorted((file.parent for file in runs_dir.glob("*/run.json")), key=created_at, reverse=True)
    return [facts_of(path) for path in found]


def facts_of(path: Path) -> RunFacts:
    try:
        run = RunDir.open(path)
        manifest, known = run.manifest(), stages.read_all(run.stages)
        champion = stages.best(known)
        return RunFacts(
            run.name,
            manifest.dataset,
            run.status,
            manifest.created,
            sum(1 for _ in files.read_jsonl(run.metrics)),
            champion.reward if champion else None,
            sum(1 for _ in run.evals.glob("*/summary.json")),
            sum(_number(row.get("usd")) for row in files.read_jsonl(run.usage)),
            sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6,
        )
    except RunError as error:
        return RunFacts(path.name, problem=error.message)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The summaries of a run's complete evaluations, with ``id``, oldest first."""
    found = []
    for file in sorted(run.glob("evals/*/summary.json"), key=lambda file: file.stat().st_mtime):
        with suppress(OSError, orjson.JSONDecodeError):
            row = orjson.loads(file.read_bytes())
            if isinstance(row, dict):
                found.append({"id": file.parent.name, **row})
    return found


@dataclass(frozen=True)
class Comparison:
    """Two runs: settings that differ, rewards by inner epoch, and scores on the questions that both have answered."""

    first: str
    second: str
    settings: list[tuple[str, Any, Any]]
    rewards: tuple[list[float], list[float]]
    scores: list[dict[str, Any]]


def compare(runs_dir: Path, first: str, second: str) -> Comparison:
    """Compare two runs by name. Raises RunError if one does not exist or its settings cannot be read."""
    left, right = (_run(runs_dir, name) for name in (first, second))
    return Comparison(
        left.name,
        right.name,
        list(_differing(config.read_toml(left.config_file), config.read_toml(right.config_file))),
        (_rewards(left), _rewards(right)),
        list(_paired(left, right)),
    )


def delete(runs_dir: Path, name: str) -> Path:
    """Delete a run and all that is in it. Raises RunError if there is no such run, RunLockedError if it is in use."""
    run = _run(runs_dir, name)
    with run.lock():
        (run.path / "run.json").unlink()  # first: what a killed deletion leaves is no run
        for part in run.path.iterdir():
            if part.name not in (".lock", ".owner"):
                shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    shutil.rmtree(run.path, ignore_errors=True)
    return run.path


def _run(runs_dir: Path, name: str) -> RunDir:
    path = find_run(runs_dir, name)
    assert path is not None  # find_run raises if there is no run of that name
    return RunDir(path)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _rewards(run: RunDir) -> list[float]:
    return [_number(row.get("episode_reward_mean")) for row in files.read_jsonl(run.metrics)]


def _differing(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(left.keys() | right.keys()):
        one, other = left.get(name), right.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other


def _paired(left: RunDir, right: RunDir) -> Iterator[dict[str, Any]]:
    """Paired differences of each evaluation of ``right`` to the newest one of ``left`` on the same data and method."""
    ours = evaluations(left.path)
    for theirs in evaluations(right.path):
        same = [row for row in ours if all(row.get(name) == theirs.get(name) for name in (*SAME, "method"))]
        if same:
            pair = (left.evals / same[-1]["id"], right.evals / theirs["id"])
            rows = [list(files.read_jsonl(folder / "results.jsonl")) for folder in pair]
            names = {key: theirs.get(key) for key in ("dataset", "split", "method")}
            for entry in differences(*rows, resamples=2000, seed=0):
                scores = (same[-1].get(entry["score"]), theirs.get(entry["score"]))
                yield {**names, "first": scores[0], "second": scores[1], **entry}
