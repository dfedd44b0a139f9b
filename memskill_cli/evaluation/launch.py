"""Finding what an evaluation is of: the run, its checkpoint and settings, and the split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memskill_cli.config import Config
from memskill_cli.datasets.base import load_split
from memskill_cli.errors import DataError, RunError
from memskill_cli.evaluation.runner import Evaluation, Subject, Task, Watcher, evaluation_id, left_out
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
    path = find_run(runs_dir, name)
    if path is not None:
        return RunDir.open(path)
    if (runs_dir / UNTRAINED / "run.json").exists():
        run = RunDir.open(runs_dir / UNTRAINED)
        run.write_config(settings)
        return run
    run = RunDir.create(runs_dir, UNTRAINED, settings, data_digest, status=UNTRAINED)
    seed_bank(noop=settings.controller.noop_seed).save(run.skill_bank)
    return run


def find_checkpoint(run: RunDir, which: str, notice: Callable[[str], None]) -> checkpoint.Checkpoint | None:
    """``best`` (of the best stage; before a stage has ended, the latest), ``latest``, or a folder. None: no such."""
    if which not in ("best", "latest"):
        return checkpoint.load(Path(which))
    champion = stages.best(stages.read_all(run.stages))
    if which == "best" and champion is not None:
        return checkpoint.load(run.checkpoints / f"{champion.checkpoint:06d}")
    return checkpoint.load_latest(run.checkpoints, notice)


async def evaluate(
    run: RunDir, task: Task, settings: Config, which: str, data_dir: Path, access: Access, progress: Progress
) -> dict[str, Any]:
    """Evaluate and give back the summary, with ``folder`` and ``left_out`` (queries the paper does not score)."""
    traces = load_split(task.dataset, data_dir, task.split)
    if not len(traces):
        raise DataError(f"{task.dataset} in {data_dir} has no split {task.split}", hint="--split train, val or test")
    with run.logged(progress.notice) as notice:
        found = find_checkpoint(run, which, notice)
        if found is None and which != "best":
            raise RunError(f"run {run.name} has no checkpoint yet", hint=f"memskill train --run {run.name} --resume")
        if found is None:
            notice("nothing is trained here yet: using the seed skills and an untrained controller")
        if skipped := left_out(traces):
            notice(f"{skipped} queries are not scored and left out (LoCoMo's adversarial category 5)")
        subject = Subject.of(found, settings)
        name = evaluation_id(task, settings, subject)
        with locked(run.evals / name, f"evaluation {name}"):
            if summary := finished(run.evals / name):
                notice(f"evaluation {name} is complete: showing it")
            else:
                async with services(settings, access, run.usage, name, notice) as opened:
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
