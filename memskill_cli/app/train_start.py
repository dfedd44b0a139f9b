"""Start training: load and check the settings, and create the run directory or open one to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.app import train
from memskill_cli.app.bundles import run_of
from memskill_cli.app.options import settings_of
from memskill_cli.app.prepare import Listeners, ensure_prepared
from memskill_cli.app.runtime import ProviderAccess, check_access, check_encoders
from memskill_cli.config import Config
from memskill_cli.datasets.registry import find_own
from memskill_cli.errors import RunError
from memskill_cli.reports.hooks import report_run
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.runs.trackers import check_installed


@dataclass(frozen=True)
class TrainRequest:
    """What to train. ``options`` are those of :func:`~memskill_cli.app.options.settings_of`.

    ``dataset`` is None if it was not given: a resumed run has its own dataset, a new run uses ``options["dataset"]``.
    """

    options: Mapping[str, Any]
    runs_dir: Path
    data_dir: Path
    access: ProviderAccess
    dataset: str | None = None
    run: str | None = None
    resume: bool = False
    override: bool = False
    init_from: str | None = None
    init_skills: Path | None = None


class TrainSession(NamedTuple):
    """A run that can be trained, with its settings. ``finished``: there is nothing left to train."""

    run: RunDir
    settings: Config
    finished: bool


def open_training(request: TrainRequest, listeners: Listeners) -> TrainSession:
    """The run to train: a new one, or one to resume.

    Raises all errors that can be detected before the first model call; in that case no new run is created.
    """
    find_own(request.data_dir)
    return _reopened(request, listeners) if request.resume else _created(request, listeners)


async def train_session(session: TrainSession, request: TrainRequest, progress: train.TrainProgress) -> RunDir:
    """Train the run to its end. If it is finished, only write its report again."""
    if session.finished:
        name = session.run.name
        progress.notice(f"run {name} is finished; to train it longer, add --outer-epochs N")
        report_run(session.run.path, progress.notice)
    else:
        await train.train(session.run, session.settings, request.data_dir, request.access, progress)
    return session.run


def _created(request: TrainRequest, listeners: Listeners) -> TrainSession:
    settings = settings_of(request.options, "train", listeners.warn)
    check_installed(settings.tracker)
    ensure_prepared(settings.dataset, request.data_dir, listeners)
    check_access(settings, request.access)
    check_encoders(settings)
    source = None
    if request.init_from:
        name = run_of(request.runs_dir, request.init_from, request.data_dir, listeners.notice)
        source = train.initial_policy(request.runs_dir, name or "", settings, listeners.notice)
    run = train.create_run(request.runs_dir, request.run, settings, request.data_dir, request.init_skills, source)
    return TrainSession(run, settings, finished=False)


def _reopened(request: TrainRequest, listeners: Listeners) -> TrainSession:
    run = train.open_for_resume(request.runs_dir, request.run, request.data_dir)
    own = run.settings()
    _check_dataset(run, own, request.dataset)
    asked = settings_of({**request.options, "dataset": own.dataset}, "train", listeners.warn, own)
    settings = train.check_resume_settings(run, asked, request.override)
    finished = run.manifest().status == "finished" and not _is_longer(own, settings)
    return TrainSession(run, settings, finished)


def _check_dataset(run: RunDir, own: Config, asked: str | None) -> None:
    if asked is not None and asked != own.dataset:
        raise RunError(
            f"run {run.name} is trained on {own.dataset}, not on {asked}",
            hint=f"leave --dataset out to resume it, or start a new run: memskill train --dataset {asked}",
        )


def _is_longer(before: Config, after: Config) -> bool:
    """Whether ``after`` has more epochs than ``before``."""
    was, now = before.train, after.train
    return now.outer_epochs > was.outer_epochs or now.inner_epochs > was.inner_epochs
