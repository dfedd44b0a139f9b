"""Run designer cycles outside training, on a finished or paused run (``memskill evolve``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from memskill_cli.agent.hard_cases import HardCase, HardCasePool
from memskill_cli.app import evaluate as evaluations
from memskill_cli.app.runtime import ProviderAccess, open_runtime
from memskill_cli.config import Config, for_evaluation
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.errors import RunError
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.results import read_latest, result_of
from memskill_cli.evaluation.spec import EvalSpec
from memskill_cli.rollout.rewards import reward_of, score_result
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.stages import Gate, Stage
from memskill_cli.training.evolution import Evolution, designer_of
from memskill_cli.training.held_out import decide


@dataclasses.dataclass(frozen=True)
class EvolveOptions:
    """Options of ``memskill evolve``. ``judge_on`` is a split; if it is "", the next training judges the change."""

    cycles: int = 1
    from_eval: str = ""
    dry_run: bool = False
    judge_on: str = ""


@dataclasses.dataclass(frozen=True)
class CycleResult:
    """The result of one cycle: the bank before, the proposed stage, and the two evaluations if there were any."""

    before: SkillBank
    stage: Stage
    judged: dict[str, Any] | None = None


async def evolve(
    run: RunDir,
    settings: Config,
    data_dir: Path,
    access: ProviderAccess,
    request: EvolveOptions,
    progress: evaluations.EvalProgress,
) -> list[CycleResult]:
    """Run designer cycles on a run's hard cases, or on the failures of an evaluation. The run is locked meanwhile.

    Each change becomes a new stage. With ``judge_on``, the banks before and after the change are evaluated on that
    split, and the better one is kept. Otherwise the next training judges the change. A dry run writes only the ledger.
    """
    with run.lock(), run.logged(progress.notice) as notice:
        found = evaluations.latest_checkpoint(run, notice)
        cycles: list[CycleResult] = []
        for _ in range(request.cycles):
            cycle = await _propose(run, settings, found, access, request, notice)
            if request.judge_on and not request.dry_run and cycle.stage.change:
                logged = evaluations.EvalProgress(progress.begin, notice)
                cycle = await _judge(run, settings, found, data_dir, access, request.judge_on, cycle, logged)
            cycles.append(cycle)
        return cycles


async def _propose(
    run: RunDir,
    settings: Config,
    found: Checkpoint,
    access: ProviderAccess,
    request: EvolveOptions,
    notice: Callable[[str], None],
) -> CycleResult:
    """Propose a change to the best stage's bank, or return the earlier proposal that this command is to judge."""
    unjudged = None if request.dry_run else _unjudged(run, settings, found, request)
    champion = stages.best(stages.read_all(run.stages))
    base = champion.bank if champion else found.bank
    if unjudged is not None:
        return CycleResult(base, unjudged)
    evolution = Evolution(run.stages, settings.designer, notice)
    here = dataclasses.replace(settings, engine="local")  # the designer makes only a few calls
    async with open_runtime(here, access, run.usage, "evolve", notice) as opened:
        designer = designer_of(opened.context.llm, settings)
        pool = HardCasePool(settings.designer, _cases(run, settings, found, champion, request.from_eval, notice))
        stage = await evolution.propose(
            designer, base, pool, opened.context.encoders.retrieval, settings.seed, write=False
        )
    if not request.dry_run:
        # The stage is written last, here and in _judge. If the process is killed before that, the same command makes
        # the same change again, with cached replies.
        if stage.change and not request.judge_on:
            stage.bank.save(run.skill_bank)
        stage = _mark_unchanged(stage)
        stages.write(run.stages, stage)
    return CycleResult(base, stage)


def _unjudged(run: RunDir, settings: Config, found: Checkpoint, request: EvolveOptions) -> Stage | None:
    """The proposed stage that has not been judged yet, if any. RunError if this command does not judge it either."""
    unjudged = stages.first_unjudged(stages.read_all(run.stages), found.bank.stage)
    if unjudged is not None and not unjudged.change:
        stages.write(run.stages, _mark_unchanged(unjudged))
        return None
    if unjudged is not None and not request.judge_on:
        more = settings.train.outer_epochs + 1
        raise RunError(
            f"stage {unjudged.number} of run {run.name} has not been judged yet",
            hint=f"memskill evolve --run {run.name} --judge-on val, or memskill train --run {run.name} --resume "
            f"--outer-epochs {more}",
        )
    return unjudged


def _mark_unchanged(stage: Stage) -> Stage:
    """``stage``; marked as kept if it changes nothing, because there is nothing to judge."""
    return stage if stage.change else dataclasses.replace(stage, kept=True)


def _cases(
    run: RunDir,
    settings: Config,
    found: Checkpoint,
    champion: Stage | None,
    from_eval: str,
    notice: Callable[[str], None],
) -> Sequence[HardCase]:
    """The hard cases of the best stage (of the latest checkpoint if no stage was judged), or an evaluation's failures.

    RunError if there is no such evaluation.
    """
    if not from_eval:
        if champion is not None and champion.checkpoint not in (None, found.num_updates):
            found = checkpoint.load_latest(run.checkpoints, notice, upto=champion.checkpoint) or found
        return HardCasePool.from_rows(settings.designer, found.state["hard_cases"]).cases
    folder = run.evals / from_eval
    if Path(from_eval).name != from_eval or not (folder / "results.jsonl").exists():
        known = ", ".join(path.name for path in sorted(run.evals.glob("*"))) or "none yet"
        raise RunError(f"run {run.name} has no evaluation {from_eval}", hint=f"its evaluations: {known}")
    return failures(read_latest(folder / "results.jsonl").values(), settings)


def failures(rows: Iterable[dict[str, Any]], settings: Config) -> list[HardCase]:
    """The wrong answers of an evaluation as hard cases that failed once. Rows without a score are skipped.

    As in training, an answer is wrong if its reward is below the threshold.
    """
    reward = reward_of(settings.reward)
    threshold = reward.threshold(settings.designer)
    scored = [(row, score_result(reward, result_of(row))) for row in rows]
    return [
        HardCase(
            query_id=row["query_id"],
            trace_id=row["trace_id"],
            category=row["category"],
            question=row["question"],
            gold_answers=tuple(row["truths"]),
            prediction=row["prediction"],
            retrieved=tuple(memory["text"] for memory in row["retrieved"]),
            score=score,
            fail_count=1,
            epoch=0,
            stage=row.get("evidence", {}).get("stage", "") if settings.designer.evidence else "",
        )
        for row, score in scored
        if score is not None and score < threshold
    ]


async def _judge(
    run: RunDir,
    settings: Config,
    found: Checkpoint,
    data_dir: Path,
    access: ProviderAccess,
    split: str,
    cycle: CycleResult,
    progress: evaluations.EvalProgress,
) -> CycleResult:
    """Evaluate the banks before and after on ``split``, with the same controller, and keep the better one.

    With ``designer.gate = "val"`` the one after must be better by the rule of that setting.
    """
    kind, manifest = kind_of(settings.dataset), load_manifest(settings.dataset, data_dir)
    task = EvalSpec(settings.dataset, split, "memskill", kind.data_digest(manifest, split))
    measure = kind.measure(reward_of(settings.reward).measure)
    settings = for_evaluation(settings, judge=True if measure == "judge" else None)
    jobs = [
        evaluations.EvalJob(task, EvaluatedPolicy.of(found, settings, bank))
        for bank in (cycle.before, cycle.stage.bank)
    ]
    both = await evaluations.evaluate_jobs(run, jobs, settings, data_dir, access, progress)
    scores = dict(zip(("before", "after"), both, strict=True))
    kept, gate = decide_by(measure, both, settings, kind.scores)
    known = stages.read_all(run.stages)
    stage = dataclasses.replace(cycle.stage, kept=kept, is_best=kept, checkpoint=found.num_updates, gate=gate)
    (stage.bank if kept else cycle.before).save(run.skill_bank)
    stages.write(run.stages, stage)
    former = stages.best([other for other in known if other.number != stage.number])
    if kept and former is not None:
        stages.write(run.stages, dataclasses.replace(former, is_best=False))
    return CycleResult(cycle.before, stage, {"split": split, "measure": measure, **scores})


def decide_by(
    measure: str, both: Sequence[dict[str, Any]], settings: Config, scores: Sequence[str]
) -> tuple[bool, Gate | None]:
    """Whether the second of two evaluations is better by the rule of ``designer.gate``, and the comparison if it is
    "val", which is by query.

    ``measure`` is a field of the summaries ``both``, ``scores`` are the scores in a line of a query.
    """
    before, after = both
    if settings.designer.gate == "rewards":
        return (after[measure] or 0.0) > (before[measure] or 0.0), None
    name = measure if measure in scores else scores[0]
    gate = decide(_scores(before, name), _scores(after, name), settings)
    return (gate.kept if gate else False), gate


def _scores(summary: dict[str, Any], name: str) -> dict[str, float | None]:
    """The scores of an evaluation's queries, by query id."""
    rows = read_latest(Path(summary["folder"]) / "results.jsonl")
    return {query_id: row[name] for query_id, row in rows.items()}
