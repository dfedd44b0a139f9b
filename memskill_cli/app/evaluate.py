"""Evaluate a run: find its checkpoint and skills, then run the evaluations one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.app.runtime import ProviderAccess, Runtime, env_root, open_runtime
from memskill_cli.config import Config
from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.registry import get
from memskill_cli.errors import DataError, RunError
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.comparison import differences
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.results import read_results
from memskill_cli.evaluation.runner import EvalCallbacks, Evaluation
from memskill_cli.evaluation.spec import EvalPlan, EvalSpec, evaluation_id, plan
from memskill_cli.evaluation.stored_summary import read_summary
from memskill_cli.reports.hooks import report_evaluations
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.run_dir import UNTRAINED, RunDir, find_run
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage
from memskill_cli.types import Trace
from memskill_cli.utils.files import owned
from memskill_cli.utils.locks import locked


@dataclasses.dataclass(frozen=True)
class EvalProgress:
    """Progress of evaluations: ``begin(title, number of queries)`` returns the callbacks of the next evaluation."""

    begin: Callable[[str, int], EvalCallbacks]
    notice: Callable[[str], None]


class EvalJob(NamedTuple):
    """One evaluation: what to ask, and the policy that is evaluated."""

    spec: EvalSpec
    policy: EvaluatedPolicy


def open_run(runs_dir: Path, name: str | None, settings: Config, data_digest: str) -> RunDir:
    """The run ``name``, by default the newest; without any run, the run for evaluations without training."""
    path = find_run(runs_dir, name, trained=True)
    if path is not None:
        return RunDir.open(path)
    if not (runs_dir / UNTRAINED / "run.json").exists():
        bank = seed_bank(noop=settings.controller.include_noop)
        with suppress(RunError):  # another process has just created it
            return RunDir.create(
                runs_dir, UNTRAINED, settings, data_digest, UNTRAINED, lambda run: bank.save(run.skill_bank)
            )
    run = RunDir.open(runs_dir / UNTRAINED)
    run.write_config(settings)
    return run


def find_policy(
    run: RunDir, which: str, settings: Config, notice: Callable[[str], None], bank: SkillBank | None = None
) -> EvaluatedPolicy:
    """The policy to evaluate; ``which`` is ``best``, ``latest`` or a checkpoint's folder. ``bank`` replaces its skills.

    ``best`` is the best stage, or the latest checkpoint if no stage has been judged. For a run without checkpoints,
    ``best`` is an untrained controller with the seed skills; ``notice`` is told so.
    Raises CheckpointError for a damaged checkpoint, RunError if there is no ``latest``.
    """
    if which not in ("best", "latest"):
        return EvaluatedPolicy.of(checkpoint.load(Path(which)), settings, bank)
    if which == "best" and (champion := stages.best(stages.read_all(run.stages))) is not None:
        found = _measured_with(run, champion, notice)
        if stages.best(stages.read_all(run.stages)) != champion:  # training has found a better stage in the meantime
            return find_policy(run, which, settings, notice, bank)
        return EvaluatedPolicy.of(found, settings, bank or champion.bank)
    if which == "best" and not checkpoint.all_of(run.checkpoints):
        skills = "the seed skills" if bank is None else "the skills given"
        notice(f"no checkpoint found: using {skills} and an untrained controller")
        return EvaluatedPolicy.of(None, settings, bank)
    return EvaluatedPolicy.of(latest_checkpoint(run, notice), settings, bank)


def best_checkpoint(run: RunDir, notice: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of the best stage with that stage's bank; the latest checkpoint if no stage has been judged."""
    champion = stages.best(stages.read_all(run.stages))
    if champion is None:
        return latest_checkpoint(run, notice)
    return dataclasses.replace(_measured_with(run, champion, notice), bank=champion.bank)


def latest_checkpoint(run: RunDir, notice: Callable[[str], None]) -> Checkpoint:
    """The newest undamaged checkpoint; RunError if there is none."""
    found = checkpoint.load_latest(run.checkpoints, notice)
    if found is None:
        raise RunError(f"run {run.name} has no usable checkpoint", hint=f"memskill train --run {run.name} --resume")
    return found


def _measured_with(run: RunDir, champion: Stage, notice: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that the best stage's reward was measured with; if it is damaged, the nearest undamaged one."""
    found = checkpoint.load_latest(run.checkpoints, notice, upto=champion.checkpoint) or latest_checkpoint(run, notice)
    if found.num_updates != champion.checkpoint:
        notice(
            f"the checkpoint of the best stage, {champion.number}, cannot be used: "
            f"using the skills of that stage with the controller of checkpoint {found.num_updates:06d}"
        )
    return found


def policies_of(
    names: Sequence[str],
    run: RunDir,
    which: str,
    settings: Config,
    notice: Callable[[str], None],
    bank: SkillBank | None = None,
) -> dict[str, EvaluatedPolicy]:
    """For each method, the part of the run that it uses. The checkpoint is loaded only if a method needs it.

    ``bank`` replaces the run's skills.
    """
    uses = {name: methods.get(name).policy_dependency for name in names}
    found = EvaluatedPolicy.nothing()
    if {"controller", "skills"} & set(uses.values()):
        found = find_policy(run, which, settings, notice, bank)
    table = {
        "controller": found,
        "skills": found.skills_only(),
        "seeds": EvaluatedPolicy.of(None, settings),
        "nothing": EvaluatedPolicy.nothing(),
    }
    return {name: table[use] for name, use in uses.items()}


async def evaluate(
    run: RunDir,
    tasks: Sequence[EvalSpec],
    settings: Config,
    which: str,
    data_dir: Path,
    access: ProviderAccess,
    progress: EvalProgress,
    bank: SkillBank | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a run's checkpoint for each spec in ``tasks``; returns the summaries as :func:`evaluate_jobs` does.

    ``bank`` replaces the run's skills.
    """
    with run.logged(progress.notice) as notice:
        subjects = policies_of([task.method for task in tasks], run, which, settings, notice, bank)
        jobs = [EvalJob(task, subjects[task.method]) for task in tasks]
        return await evaluate_jobs(run, jobs, settings, data_dir, access, EvalProgress(progress.begin, notice))


async def evaluate_jobs(
    run: RunDir,
    jobs: Sequence[EvalJob],
    settings: Config,
    data_dir: Path,
    access: ProviderAccess,
    progress: EvalProgress,
) -> list[dict[str, Any]]:
    """Run the evaluations that are not complete, one after the other. The budget applies to each of them.

    Returns the summaries in order, with ``folder`` and ``left_out`` (number of queries that are not scored). Errors
    that can be detected in advance are raised before the first paid call.
    """
    names = [evaluation_id(task, settings, policy) for task, policy in jobs]
    with ExitStack() as locks:
        locks.enter_context(owned(run.path))
        for name in names:
            locks.enter_context(locked(run.evals / name, f"evaluation {name}"))
        known = {name: finished(run.evals / name) for name in names}
        pending = [name for name in names if not known[name]]
        async with AsyncExitStack() as stack:
            if pending:
                games = env_root(settings.dataset, data_dir, jobs[0].spec.split)
                opened = await stack.enter_async_context(
                    open_runtime(settings, access, run.usage, pending[0], progress.notice, games)
                )
                evaluations = _evaluations(run, jobs, pending, settings, opened, progress.notice)
            summaries: list[dict[str, Any]] = []
            read: dict[EvalSpec, tuple[Sequence[Trace], EvalPlan]] = {}  # the same for all methods of a split
            for name, job in zip(names, jobs, strict=True):
                asked = dataclasses.replace(job.spec, method="")
                if asked not in read:
                    traces = _traces(asked, settings, data_dir)
                    read[asked] = traces, plan(traces, asked)
                    _say_left_out(asked, read[asked][1], progress)
                traces, planned = read[asked]
                if summary := known[name]:
                    progress.notice(f"evaluation {name} is complete: showing it")
                else:
                    summary = await _run(evaluations[name], traces, planned, progress)
                known_task = {**dataclasses.asdict(job.spec), "variant": job.spec.variant}
                place = {"folder": str(run.evals / name), "left_out": planned.excluded}
                summaries.append({**known_task, **summary, **place})
    # Reports are written last, because each compares its evaluation with the others.
    reports = report_evaluations([Path(summary["folder"]) for summary in summaries], progress.notice)
    return [{**summary, "report": report} for summary, report in zip(summaries, reports, strict=True)]


def _evaluations(
    run: RunDir,
    jobs: Sequence[EvalJob],
    pending: Sequence[str],
    settings: Config,
    opened: Runtime,
    notice: Callable[[str], None],
) -> dict[str, Evaluation]:
    """The pending evaluations by name. Raises if one of them cannot be run."""
    context, ledger, engine = opened.context, opened.ledger, opened.engine
    made = [Evaluation(run, task, settings, policy, context, ledger, notice, engine) for task, policy in jobs]
    left = {evaluation.id: evaluation for evaluation in made if evaluation.id in pending}
    for evaluation in left.values():
        evaluation.method.check()
    return left


async def _run(
    evaluation: Evaluation, traces: Sequence[Trace], planned: EvalPlan, progress: EvalProgress
) -> dict[str, Any]:
    evaluation.ledger.rescope(evaluation.id)
    evaluation.callbacks = progress.begin(title(evaluation.spec), len(planned.queries))
    return await evaluation.evaluate(traces, planned)


def title(task: EvalSpec) -> str:
    return f"{task.method} {task.variant}".strip()


def _traces(task: EvalSpec, settings: Config, data_dir: Path) -> Sequence[Trace]:
    traces = load_split(task.dataset, data_dir, task.split)
    if not len(traces):
        raise DataError(f"{task.dataset} in {data_dir} has no split {task.split}", hint="--split train, val or test")
    load = partial(load_split, task.dataset, data_dir)
    return kind_of(task.dataset).traces(traces, load, settings, task.limit)


def _say_left_out(task: EvalSpec, planned: EvalPlan, progress: EvalProgress) -> None:
    if planned.excluded:
        what = get(task.dataset).excluded_queries
        progress.notice(f"{planned.excluded} queries are not scored and are left out" + (f" ({what})" if what else ""))


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of an evaluation without failed queries; None if it is not complete."""
    file = folder / "summary.json"
    summary = read_summary(file) if file.exists() else None
    return summary if summary and not summary["errors"] else None


def compare_methods(summaries: Sequence[dict[str, Any]], settings: Config) -> list[dict[str, Any]]:
    """Compare each method with the first one on the same split.

    Returns a row for each comparison and score: ``split variant first method`` and the fields of
    :func:`~memskill_cli.evaluation.comparison.differences`.
    """
    found: list[dict[str, Any]] = []
    for split in dict.fromkeys(summary["split"] for summary in summaries):
        first, *others = (summary for summary in summaries if summary["split"] == split)
        for other in others:
            names = {key: first[key] for key in ("split", "variant")}
            names |= {"first": first["method"], "method": other["method"]}
            pair = (read_results(Path(one["folder"]) / "results.jsonl") for one in (first, other))
            scores = kind_of(first["dataset"]).scores
            gains = differences(*pair, resamples=settings.eval.bootstrap, seed=settings.seed, scores=scores)
            found += [names | entry for entry in gains]
    return found
