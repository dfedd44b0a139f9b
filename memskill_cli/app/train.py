"""Start or resume training: the run directory, its data and its settings, then the trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from memskill_cli.agent import prompts
from memskill_cli.app.evaluate import best_checkpoint
from memskill_cli.app.runtime import ProviderAccess, env_root, open_runtime
from memskill_cli.config import Config, to_dict
from memskill_cli.datasets.arrow_tables import PreparedSplit
from memskill_cli.datasets.base import prepare_command, source_flags
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import get
from memskill_cli.errors import DataError, RunError, UsageError
from memskill_cli.reports.hooks import report_run
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir, find_run, new_name
from memskill_cli.runs.trackers import tracked
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import import_bank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.training.algorithms import group_size
from memskill_cli.training.episode_sampler import check_reward, make_sampler
from memskill_cli.training.evolution import designer_of
from memskill_cli.training.held_out import held_out_of
from memskill_cli.training.resume import resume
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Trace
from memskill_cli.utils import files

RESUMABLE_SETTINGS = (
    *("limits", "preset", "tracker", "engine", "ray", "models.api_base", "models.timeout", "models.retries"),
    "models.prices",
    *("train.outer_epochs", "train.keep_checkpoints", "env.workers", "env.step_timeout"),
)
"""Settings (and sections) that may change when a run is resumed, because they do not change what is learned."""


def initial_policy(runs_dir: Path, name: str, settings: Config, notice: Callable[[str], None]) -> checkpoint.Checkpoint:
    """The controller and the bank of the best stage of run ``name``, for a new run to start from.

    Raises RunError if there is no such run or it has no checkpoint, UsageError if its encoders are not those of
    ``settings``.
    """
    path = find_run(runs_dir, name)
    assert path is not None  # find_run raises if there is no run of that name
    run = RunDir.open(path)
    theirs, ours = run.settings().encoders, settings.encoders
    if (theirs.state, theirs.skill) != (ours.state, ours.skill):
        raise UsageError(
            f"the controller of run {name} was trained with the encoder {theirs.state}, not with {ours.state}",
            hint=f"add --encoder {theirs.state}",
        )
    return best_checkpoint(run, notice)


def create_run(
    runs_dir: Path,
    name: str | None,
    settings: Config,
    data_dir: Path,
    skills: Path | None = None,
    source: checkpoint.Checkpoint | None = None,
) -> RunDir:
    """Create a run directory. The bank of its first stage has the seed skills, or ``skills``.

    With ``source`` the run starts from that controller, and from its skills unless ``skills`` are given.

    Raises, before anything is written, SkillBankError for invalid ``skills``, DataError for a dataset without a
    training split and UsageError for a reward that the dataset does not have, or a batch that is no whole number of
    groups.
    """
    check_reward(settings)
    group_size(settings.train)
    manifest = load_manifest(settings.dataset, data_dir)
    if "train" not in manifest.splits and manifest.reading:
        flags = [*source_flags(manifest.source), *manifest.reading.get("flags", [])]
        raise DataError(
            f"{settings.dataset} in {data_dir} has no training split, only {', '.join(manifest.splits)}",
            hint="add questions (docs/own-data.md), then: "
            + prepare_command(settings.dataset, data_dir, *flags, "--force"),
        )
    if "train" not in manifest.splits:
        raise DataError(
            f"{settings.dataset} in {data_dir} has no training split, only {', '.join(manifest.splits)}",
            hint=f"train on another dataset, then evaluate that run: memskill eval --dataset {settings.dataset}",
        )
    bank = _first_bank(settings, skills, source)

    def fill(run: RunDir) -> None:
        stages.write(run.stages, stages.Stage(0, bank))
        bank.save(run.skill_bank)
        if source is not None:
            state = {**source.state, "window_start": 0, "hard_cases": [], "rewards": []}
            first = checkpoint.Checkpoint(0, source.controller, {}, bank, state, run=run.id)
            checkpoint.save(run.checkpoints, first)

    named = name or new_name(runs_dir, settings.dataset)
    return RunDir.create(runs_dir, named, settings, manifest.digest_of("train"), fill=fill)


def _first_bank(settings: Config, skills: Path | None, source: checkpoint.Checkpoint | None) -> SkillBank:
    """The bank of stage 0. SkillBankError for ``skills`` that are invalid, or more than ``designer.capacity``."""
    capacity = settings.designer.capacity
    if skills is not None:
        return SkillBank(import_bank(skills).skills, capacity=capacity)
    if source is not None:
        fresh = (dataclasses.replace(skill, created_stage=0, modified_stage=0) for skill in source.bank.skills)
        return SkillBank(fresh, capacity=capacity)
    return seed_bank(settings.controller.include_noop, capacity)


def open_for_resume(runs_dir: Path, name: str | None, data_dir: Path) -> RunDir:
    """The run to resume. RunError if there is none, DataError if the prepared data are not those it started with."""
    path = find_run(runs_dir, name)
    if path is None:
        raise RunError(f"no run in {runs_dir} to resume", hint="start one: memskill train --dataset locomo")
    run = RunDir.open(path)
    run.check_plugins()  # before the dataset is loaded, which may come from a plug-in
    manifest = run.manifest()
    if load_manifest(manifest.dataset, data_dir).digest_of("train") != manifest.data_digest:
        raise DataError(
            f"run {run.name} was started with other {manifest.dataset} data than those in {data_dir}",
            hint="prepare the data that it was started with, or start a new run",
        )
    return run


def check_resume_settings(run: RunDir, asked: Config, override: bool) -> Config:
    """The settings that a resumed run continues with.

    Raises RunError with the list of differences if other settings than :data:`RESUMABLE_SETTINGS` differ, unless
    ``override``.
    """
    own = run.settings()
    differs = [
        f"{name}: {before!r} -> {after!r}"
        for name, before, after in _differences(to_dict(own), to_dict(asked))
        if not name.startswith(RESUMABLE_SETTINGS)
    ]
    if differs and not override:
        raise RunError(
            f"run {run.name} was started with other settings ({'; '.join(differs)})",
            hint="leave them out to continue with the run's settings, or add --override to use the new ones",
        )
    return asked


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings with different values, by dotted name. Some values are tables themselves."""
    others = _by_name(after)
    return [(name, value, others[name]) for name, value in _by_name(before).items() if value != others[name]]


def _by_name(table: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return found


@dataclasses.dataclass(frozen=True)
class TrainProgress:
    """Progress of training: ``begin(number of spans to read, notice)`` returns the trainer's callbacks."""

    begin: Callable[[int, Callable[[str], None]], TrainCallbacks]
    notice: Callable[[str], None]


async def train(run: RunDir, settings: Config, data_dir: Path, access: ProviderAccess, progress: TrainProgress) -> None:
    """Train ``run`` from its current state to its end. The run is locked meanwhile; if stopped, it is ``paused``."""
    with run.lock(), run.logged(progress.notice) as notice:
        traces: PreparedSplit = load_split(settings.dataset, data_dir, "train")
        if not len(traces):
            raise DataError(f"{settings.dataset} has no training traces in {data_dir}")
        if text := get(settings.dataset).training_notice:
            notice(text)
        sampler = make_sampler(settings, traces, notice)
        held_out = held_out_of(settings, partial(_val_traces, settings.dataset, data_dir), notice)
        games = env_root(settings.dataset, data_dir, "train")
        run.write_config(settings)
        run.set_status("running")
        finished = False

        def end() -> None:
            run.set_status("finished" if finished else "paused")
            report_run(run.path, notice)

        with files.run_on_exit(end):
            if (recorded := run.manifest().prompts) and recorded != prompts.digest(designer=True):
                notice("the prompts have changed since this run was started: its inner epochs are not comparable")
            if changed := run.record_plugins():
                notice(f"changed since this run was started: {', '.join(changed)}; its inner epochs are not comparable")
            async with open_runtime(settings, access, run.usage, "train", notice, games) as opened:
                bank = stages.read(stages.path_of(run.stages, 0)).bank
                designer = designer_of(opened.context.llm, settings) if settings.train.evolve else None
                trainer = Trainer(
                    run,
                    settings,
                    opened.context,
                    opened.ledger,
                    sampler,
                    bank,
                    designer,
                    TrainCallbacks(notice=notice),
                    opened.engine,
                    held_out,
                )
                resume(trainer)
                notice(f"run {run.name}: inner epochs {trainer.num_updates} to {trainer.total}, {len(sampler)} traces")
                with tracked(run, settings, notice) as log:
                    callbacks = _logging(progress.begin(trainer.spans_ahead(), notice), trainer, log)
                    trainer.callbacks = _reporting(callbacks, run, settings.train.inner_epochs, notice)
                    await trainer.train()
            finished = True


def _val_traces(dataset: str, data_dir: Path) -> Sequence[Trace]:
    """The traces of the val split; none if there is no such split."""
    return load_split(dataset, data_dir, "val") if "val" in load_manifest(dataset, data_dir).splits else ()


def _logging(callbacks: TrainCallbacks, trainer: Trainer, log: Callable[[int, dict[str, Any]], None]) -> TrainCallbacks:
    """``callbacks`` that also send every row of metrics to a tracker."""

    def epoch(row: dict[str, Any]) -> None:
        callbacks.on_epoch(row)
        log(trainer.num_updates, row)

    return dataclasses.replace(callbacks, on_epoch=epoch)


def _reporting(
    callbacks: TrainCallbacks, run: RunDir, inner_epochs: int, notice: Callable[[str], None]
) -> TrainCallbacks:
    """``callbacks`` that also write the run's report at the end of each stage."""

    def epoch(row: dict[str, Any]) -> None:
        callbacks.on_epoch(row)
        if row["inner"] + 1 == inner_epochs:
            report_run(run.path, notice)

    return dataclasses.replace(callbacks, on_epoch=epoch)
