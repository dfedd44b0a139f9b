"""What each of the designer's skills is worth: a run is evaluated with its bank, and without each of these skills."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from memskill_cli.app import evaluate as evaluations
from memskill_cli.app.runtime import ProviderAccess
from memskill_cli.config import Config, for_evaluation
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.errors import RunError
from memskill_cli.evaluation.comparison import differences
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.results import read_results
from memskill_cli.evaluation.spec import EvalSpec
from memskill_cli.rollout.rewards import reward_of
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills.bank import SkillBank


@dataclasses.dataclass(frozen=True)
class SkillEffect:
    """The mean paired difference (with the skill − without it) of one score, and its 95 % interval."""

    skill: str
    score: str
    queries: int
    difference: float
    ci95: tuple[float, float]


async def attribute(
    run: RunDir,
    settings: Config,
    data_dir: Path,
    access: ProviderAccess,
    split: str,
    progress: evaluations.EvalProgress,
) -> list[SkillEffect]:
    """Evaluate the best stage on ``split`` with all skills, and without each skill that the designer added.

    The controller is the same in all evaluations. Effects are by the score that the run is rewarded with. RunError if
    the bank has no skill of the designer. Evaluations that are complete are not run again.
    """
    kind, manifest = kind_of(settings.dataset), load_manifest(settings.dataset, data_dir)
    measure = reward_of(settings.reward).measure
    score = measure if measure in kind.scores else kind.scores[0]
    settings = for_evaluation(settings, judge=True if score == "judge" else None)
    with run.logged(progress.notice) as notice:
        whole = evaluations.find_policy(run, "best", settings, notice)
        names = [skill.name for skill in whole.bank.skills if skill.origin == "designer"]
        if not names:
            raise RunError(f"the best bank of run {run.name} has no skill that the designer added")
        spec = EvalSpec(settings.dataset, split, "memskill", kind.data_digest(manifest, split))
        banks = [whole.bank, *(_without(whole.bank, name) for name in names)]
        jobs = [evaluations.EvalJob(spec, EvaluatedPolicy.of(whole.found, settings, bank)) for bank in banks]
        logged = evaluations.EvalProgress(progress.begin, notice)
        summaries = await evaluations.evaluate_jobs(run, jobs, settings, data_dir, access, logged)
    return [
        effect
        for name, summary in zip(names, summaries[1:], strict=True)
        for effect in _effects(name, score, summary, summaries[0], settings)
    ]


def _without(bank: SkillBank, name: str) -> SkillBank:
    kept = [skill for skill in bank.skills if skill.name != name]
    return SkillBank(kept, stage=bank.stage, capacity=bank.capacity)


def _effects(
    name: str, score: str, without: dict[str, Any], whole: dict[str, Any], settings: Config
) -> list[SkillEffect]:
    """The effect of one skill; none if no query has the score in both evaluations."""
    rows = (read_results(Path(summary["folder"]) / "results.jsonl") for summary in (without, whole))
    found = differences(*rows, resamples=settings.eval.bootstrap, seed=settings.seed, scores=[score])
    return [
        SkillEffect(name, score, one["queries"], one["difference"], (one["ci95"][0], one["ci95"][1])) for one in found
    ]
