"""Finding what an evaluation is of: the run, its checkpoint and settings, and the split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memskill_cli.config import Config
from memskill_cli.datasets.base import load_split
from memskill_cli.errors import DataError, RunError
from memskill_cli.evaluation.runner import Evaluation, Task, Watcher, evaluation_id, left_out
from memskill_cli.evaluation.subject import Subject
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import UNTRAINED, RunDir, find_run, locked, read_json
from memskill_cli.services import Access, services
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.training import stages


@dataclasses.dataclass(frozen=True)
class Progress:
    """How an evaluation is watched: told the spans and queries ahead, gives back the watcher."""

    begin: Callable[[int, int], Watcher]
    notice: Callable[[str], None]


def open_run(runs_dir: Path, name: str | None, settings: Config, data_digest: str) -> RunDir:
    """The run asked for or the newest; if there is none, the one that holds evaluations without training."""
    path = find_run(runs_dir, name, trained=True)
    if path is not None:
        return RunDir.open(path)
    if (runs_dir / UNTRAINED / "run.json").exists():
        run = RunDir.open(runs_dir / UNTRAINED)
        run.write_config(settings)
        return run
    run = RunDir.create(runs_dir, UNTRAINED, settings, data_digest, status=UNTRAINED)
    seed_bank(noop=settings.controller.noop_seed).save(run.skill_bank)
    return run


def find_subject(run: RunDir, which: str, settings: Config, notice: Callable[[str], None]) -> Subject:
    """``best`` (the best stage; before one has been judged, the latest), ``latest``, or a checkpoint's folder.

    A run that has nothing yet gives the seed skills and an untrained controller for ``best``, and says so.
    Raises CheckpointError for a damaged checkpoint, RunError if there is no ``latest``.
    """
    if which not in ("best", "latest"):
        return Subject.of(checkpoint.load(Path(which)), settings)
    champion = stages.best(stages.read_all(run.stages))
    if which == "best" and champion is not None:
        folder = run.checkpoints / f"{champion.checkpoint:06d}"
        # A stage is closed a moment before its checkpoint is written; a run killed in between has only the latest.
        if folder in checkpoint.all_of(run.checkpoints):
            return Subject.of(checkpoint.load(folder), settings, champion.bank)
    latest = checkpoint.load_latest(run.checkpoints, notice)
    if latest is None and which == "latest":
        raise RunError(f"run {run.name} has no checkpoint yet", hint=f"memskill train --run {run.name} --resume")
    if latest is None:
        notice("nothing is trained here yet: using the seed skills and an untrained controller")
    return Subject.of(latest, settings)


async def evaluate(
    run: RunDir, task: Task, settings: Config, which: str, data_dir: Path, access: Access, progress: Progress
) -> dict[str, Any]:
    """Evaluate a checkpoint and give back the summary, as :func:`evaluate_subject` does."""
    with run.logged(progress.notice) as notice:
        subject = find_subject(run, which, settings, notice)
        return await evaluate_subject(run, task, settings, subject, data_dir, access, Progress(progress.begin, notice))


async def evaluate_subject(
    run: RunDir, task: Task, settings: Config, subject: Subject, data_dir: Path, access: Access, progress: Progress
) -> dict[str, Any]:
    """Evaluate what is still owed and give back the summary, with ``folder`` and ``left_out`` (queries not scored)."""
    traces = load_split(task.dataset, data_dir, task.split)
    if not len(traces):
        raise DataError(f"{task.dataset} in {data_dir} has no split {task.split}", hint="--split train, val or test")
    if skipped := left_out(traces):
        progress.notice(f"{skipped} queries are not scored and left out (LoCoMo's adversarial category 5)")
    name = evaluation_id(task, settings, subject)
    with locked(run.evals / name, f"evaluation {name}"):
        if summary := finished(run.evals / name):
            progress.notice(f"evaluation {name} is complete: showing it")
        else:
            async with services(settings, access, run.usage, name, progress.notice) as opened:
                evaluation = Evaluation(run, task, settings, subject, opened.world, opened.ledger)
                work = evaluation.plan(traces)
                spans = sum(len(evaluation.spans(trace)) for trace, _ in work)
                evaluation.watcher = progress.begin(spans, sum(len(queries) for _, queries in work))
                summary = await evaluation.evaluate(work)
    return {**summary, "folder": str(run.evals / name), "left_out": skipped}


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of an evaluation that owes nothing any more."""
    file = folder / "summary.json"
    summary = read_json(file) if file.exists() else None
    return summary if summary and not summary["errors"] else None
