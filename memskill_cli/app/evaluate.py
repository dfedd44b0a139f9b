"""Finding what evaluations are of (the run, its checkpoint and settings, the splits), and making them in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.app.runtime import Access, Services, games_of, services
from memskill_cli.config import Config
from memskill_cli.datasets.base import load_split
from memskill_cli.errors import DataError, RunError
from memskill_cli.evaluation import env_evaluation, methods
from memskill_cli.evaluation.comparison import differences
from memskill_cli.evaluation.policy import Subject
from memskill_cli.evaluation.runner import Evaluation, Watcher
from memskill_cli.evaluation.spec import Plan, Task, evaluation_id, plan
from memskill_cli.evaluation.summary import SCORES
from memskill_cli.reports.hooks import report_evaluations
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.run_dir import UNTRAINED, RunDir, find_run, read_json
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage
from memskill_cli.types import Trace
from memskill_cli.utils import files
from memskill_cli.utils.locks import locked

LEFT_OUT = {
    "locomo": "LoCoMo's adversarial category 5",
    "longmemeval": "abstention; --include-abstention asks them, and reports them apart",
}
"""Which queries of a dataset are not scored."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How an evaluation is watched: told its name and how many queries there are, gives back the watcher."""

    begin: Callable[[str, int], Watcher]
    notice: Callable[[str], None]


class Job(NamedTuple):
    """One evaluation to make, of what."""

    task: Task
    subject: Subject


def open_run(runs_dir: Path, name: str | None, settings: Config, data_digest: str) -> RunDir:
    """The run asked for or the newest; if there is none, the one that holds evaluations without training."""
    path = find_run(runs_dir, name, trained=True)
    if path is not None:
        return RunDir.open(path)
    if not (runs_dir / UNTRAINED / "run.json").exists():
        bank = seed_bank(noop=settings.controller.noop_seed)
        with suppress(RunError):  # another evaluation makes it at this moment
            return RunDir.create(
                runs_dir, UNTRAINED, settings, data_digest, UNTRAINED, lambda run: bank.save(run.skill_bank)
            )
    run = RunDir.open(runs_dir / UNTRAINED)
    run.write_config(settings)
    return run


def find_subject(
    run: RunDir, which: str, settings: Config, notice: Callable[[str], None], bank: SkillBank | None = None
) -> Subject:
    """``best`` (the best stage; before one has been judged, the latest), ``latest``, or a checkpoint's folder.

    ``bank`` is taken in place of the skills found.

    A run that has nothing yet gives the seed skills and an untrained controller for ``best``, and says so.
    Raises CheckpointError for a damaged checkpoint, RunError if there is no ``latest``.
    """
    if which not in ("best", "latest"):
        return Subject.of(checkpoint.load(Path(which)), settings, bank)
    if which == "best" and (champion := stages.best(stages.read_all(run.stages))) is not None:
        found = _measured_with(run, champion, notice)
        if stages.best(stages.read_all(run.stages)) != champion:  # a training has found a better one meanwhile
            return find_subject(run, which, settings, notice, bank)
        return Subject.of(found, settings, bank or champion.bank)
    if which == "best" and not checkpoint.all_of(run.checkpoints):
        skills = "the seed skills" if bank is None else "the skills given"
        notice(f"nothing is trained here yet: using {skills} and an untrained controller")
        return Subject.of(None, settings, bank)
    return Subject.of(latest_checkpoint(run, notice), settings, bank)


def best_checkpoint(run: RunDir, notice: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of the best stage with that stage's bank; the latest before one has been judged."""
    champion = stages.best(stages.read_all(run.stages))
    if champion is None:
        return latest_checkpoint(run, notice)
    return dataclasses.replace(_measured_with(run, champion, notice), bank=champion.bank)


def latest_checkpoint(run: RunDir, notice: Callable[[str], None]) -> Checkpoint:
    """The newest sound one; RunError if there is none."""
    found = checkpoint.load_latest(run.checkpoints, notice)
    if found is None:
        raise RunError(f"run {run.name} has no sound checkpoint", hint=f"memskill train --run {run.name} --resume")
    return found


def _measured_with(run: RunDir, champion: Stage, notice: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that the best stage's reward was measured with; if it is harmed, the nearest sound one."""
    found = checkpoint.load_latest(run.checkpoints, notice, upto=champion.checkpoint) or latest_checkpoint(run, notice)
    if found.done != champion.checkpoint:
        notice(
            f"the checkpoint of stage {champion.number}, the best, cannot be used: "
            f"its skills are chosen by the controller of checkpoint {found.done:06d}"
        )
    return found


def subjects_of(
    names: Sequence[str],
    run: RunDir,
    which: str,
    settings: Config,
    notice: Callable[[str], None],
    bank: SkillBank | None = None,
) -> dict[str, Subject]:
    """What of the run each method depends on; the checkpoint is looked at only if one of them needs it.

    ``bank`` is taken in place of the run's skills.
    """
    uses = {name: methods.get(name).uses for name in names}
    found = Subject.nothing()
    if {"controller", "skills"} & set(uses.values()):
        found = find_subject(run, which, settings, notice, bank)
    table = {
        "controller": found,
        "skills": found.skills_only(),
        "seeds": Subject.of(None, settings),
        "nothing": Subject.nothing(),
    }
    return {name: table[use] for name, use in uses.items()}


async def evaluate(
    run: RunDir,
    tasks: Sequence[Task],
    settings: Config,
    which: str,
    data_dir: Path,
    access: Access,
    progress: Progress,
    bank: SkillBank | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a run's checkpoint in several ways and give back the summaries, as :func:`evaluate_jobs` does.

    ``bank`` is taken in place of the run's skills.
    """
    with run.logged(progress.notice) as notice:
        subjects = subjects_of([task.method for task in tasks], run, which, settings, notice, bank)
        jobs = [Job(task, subjects[task.method]) for task in tasks]
        return await evaluate_jobs(run, jobs, settings, data_dir, access, Progress(progress.begin, notice))


async def evaluate_jobs(
    run: RunDir, jobs: Sequence[Job], settings: Config, data_dir: Path, access: Access, progress: Progress
) -> list[dict[str, Any]]:
    """Evaluate what is still owed, one after the other with the same services, each with a budget of its own.

    The summaries in order, with ``folder`` and ``left_out`` (queries not scored). What can't work raises before
    anything is paid for.
    """
    names = [evaluation_id(task, settings, subject) for task, subject in jobs]
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(locked(run.evals / name, f"evaluation {name}"))
        known = {name: finished(run.evals / name) for name in names}
        owed = [name for name in names if not known[name]]
        async with AsyncExitStack() as stack:
            if owed:
                games = games_of(settings.dataset, data_dir, jobs[0].task.split)
                opened = await stack.enter_async_context(
                    services(settings, access, run.usage, owed[0], progress.notice, games)
                )
                evaluations = _evaluations(run, jobs, owed, settings, opened, progress.notice)
            summaries: list[dict[str, Any]] = []
            read: dict[Task, tuple[Sequence[Trace], Plan]] = {}  # what is asked of a split, whatever the method
            for name, job in zip(names, jobs, strict=True):
                asked = dataclasses.replace(job.task, method="")
                if asked not in read:
                    traces = _traces(asked, settings, data_dir)
                    read[asked] = traces, plan(traces, asked)
                    _say_left_out(asked, read[asked][1], progress)
                traces, planned = read[asked]
                if summary := known[name]:
                    progress.notice(f"evaluation {name} is complete: showing it")
                else:
                    summary = await _run(evaluations[name], traces, planned, progress)
                known_task = {**dataclasses.asdict(job.task), "variant": job.task.variant}
                place = {"folder": str(run.evals / name), "left_out": planned.left_out}
                summaries.append({**known_task, **summary, **place})
    # After all of them, since a report compares an evaluation with its neighbours.
    reports = report_evaluations([Path(summary["folder"]) for summary in summaries], progress.notice)
    return [{**summary, "report": report} for summary, report in zip(summaries, reports, strict=True)]


def _evaluations(
    run: RunDir,
    jobs: Sequence[Job],
    owed: Sequence[str],
    settings: Config,
    opened: Services,
    notice: Callable[[str], None],
) -> dict[str, Evaluation]:
    """The evaluations still owed, by name, each checked to be possible."""
    world, ledger, engine = opened.world, opened.ledger, opened.engine
    made = [Evaluation(run, task, settings, subject, world, ledger, notice, engine) for task, subject in jobs]
    left = {evaluation.id: evaluation for evaluation in made if evaluation.id in owed}
    for evaluation in left.values():
        evaluation.method.check()
    return left


async def _run(evaluation: Evaluation, traces: Sequence[Trace], planned: Plan, progress: Progress) -> dict[str, Any]:
    evaluation.ledger.rescope(evaluation.id)
    evaluation.watcher = progress.begin(title(evaluation.task), len(planned.queries))
    return await evaluation.evaluate(traces, planned)


def title(task: Task) -> str:
    return f"{task.method} {task.variant}".strip()


def _traces(task: Task, settings: Config, data_dir: Path) -> Sequence[Trace]:
    traces = load_split(task.dataset, data_dir, task.split)
    if not len(traces):
        raise DataError(f"{task.dataset} in {data_dir} has no split {task.split}", hint="--split train, val or test")
    if task.dataset == "alfworld":
        train = load_split(task.dataset, data_dir, "train")
        return env_evaluation.traces_of(train, traces, settings.alfworld, limit=task.limit, seed=settings.seed)
    return traces


def _say_left_out(task: Task, planned: Plan, progress: Progress) -> None:
    if planned.left_out:
        what = LEFT_OUT.get(task.dataset, "")
        progress.notice(f"{planned.left_out} queries are not scored and left out" + (f" ({what})" if what else ""))


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of an evaluation that owes nothing any more."""
    file = folder / "summary.json"
    summary = read_json(file) if file.exists() else None
    return summary if summary and not summary["errors"] else None


def compared(summaries: Sequence[dict[str, Any]], settings: Config) -> list[dict[str, Any]]:
    """How each method differs from the first on the same split, by score: ``split variant first method`` and what
    :func:`~memskill_cli.evaluation.comparison.differences` says."""
    found: list[dict[str, Any]] = []
    for split in dict.fromkeys(summary["split"] for summary in summaries):
        first, *others = (summary for summary in summaries if summary["split"] == split)
        for other in others:
            names = {key: first[key] for key in ("split", "variant")}
            names |= {"first": first["method"], "method": other["method"]}
            pair = (files.read_jsonl(Path(one["folder"]) / "results.jsonl") for one in (first, other))
            scores = ("success",) if "success_rate" in first else SCORES
            gains = differences(*pair, resamples=settings.eval.bootstrap, seed=settings.seed, scores=scores)
            found += [names | entry for entry in gains]
    return found
