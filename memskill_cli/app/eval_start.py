"""Start an evaluation: find the run, its settings and the splits, and check them before the first model call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.app import evaluate
from memskill_cli.app.bundles import run_of
from memskill_cli.app.options import settings_of
from memskill_cli.app.prepare import Listeners, ensure_prepared
from memskill_cli.app.runtime import ProviderAccess, check_access
from memskill_cli.config import Config, for_evaluation
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.datasets.registry import find_own, get
from memskill_cli.evaluation import spec
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.spec import EvalSpec
from memskill_cli.runs.run_dir import RunDir, find_run
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.release_skills import starting_bank


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate. ``options`` are those of :func:`~memskill_cli.app.options.settings_of`.

    ``split`` is None for the dataset's default split. ``init_skills`` names skills to use instead of the run's.
    """

    options: Mapping[str, Any]
    runs_dir: Path
    data_dir: Path
    access: ProviderAccess
    methods: Sequence[str] = ("memskill",)
    run: str | None = None
    split: str | None = None
    variant: str = ""
    include_abstention: bool = False
    limit: int = 0
    checkpoint: str = "best"
    init_skills: str | None = None


class EvalSession(NamedTuple):
    """An evaluation that can start. ``specs`` has one entry for each split and method; ``bank`` replaces the skills."""

    run: RunDir
    specs: list[EvalSpec]
    settings: Config
    bank: SkillBank | None


def open_evaluation(request: EvalRequest, listeners: Listeners) -> EvalSession:
    """Find what to evaluate, and prepare the data if they are not prepared.

    Raises all errors that can be detected before the first model call.
    """
    find_own(request.data_dir)
    names = spec.method_names(",".join(request.methods))
    request = replace(request, run=run_of(request.runs_dir, request.run, request.data_dir, listeners.notice))
    path = find_run(request.runs_dir, request.run, trained=True)
    base = RunDir.open(path).settings() if path else None
    settings = for_evaluation(settings_of(request.options, "eval", listeners.warn, base))
    bank = _bank(request, settings, listeners)
    spec.check_abstention(settings.dataset, request.include_abstention)
    kind_of(settings.dataset).check_methods(settings.dataset, names)
    ensure_prepared(settings.dataset, request.data_dir, listeners)
    specs = _specs(request, settings, names)
    check_access(settings, request.access)
    run = evaluate.open_run(request.runs_dir, request.run, settings, specs[0].data_digest)
    return EvalSession(run, specs, settings, bank)


async def evaluate_session(
    session: EvalSession, request: EvalRequest, progress: evaluate.EvalProgress
) -> list[dict[str, Any]]:
    """The summaries of :func:`memskill_cli.app.evaluate.evaluate`, one for each split and method."""
    run, specs, settings, bank = session
    return await evaluate.evaluate(
        run, specs, settings, request.checkpoint, request.data_dir, request.access, progress, bank
    )


def _bank(request: EvalRequest, settings: Config, listeners: Listeners) -> SkillBank | None:
    if request.init_skills is None:
        return None
    bank = starting_bank(request.init_skills, noop=settings.controller.include_noop)
    listeners.notice(f"evaluating with the {len(bank)} skills of {request.init_skills} instead of the run's skills")
    return bank


def _specs(request: EvalRequest, settings: Config, names: Sequence[str]) -> list[EvalSpec]:
    manifest = load_manifest(settings.dataset, request.data_dir)
    split = request.split or get(settings.dataset).default_split
    splits = spec.splits_of(manifest, f"{split}-{request.variant}" if request.variant else split)
    return spec.eval_specs(manifest, splits, names, request.limit, request.include_abstention)
