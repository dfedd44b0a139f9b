"""Make a run from a checkpoint of the published code, for evaluation and further training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memskill_cli.config import Config
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.errors import CheckpointError, DataError, SkillBankError
from memskill_cli.runs import checkpoint
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.runs.release_checkpoint import ReleaseCheckpoint
from memskill_cli.runs.release_settings import Taken
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.release_skills import bank_of, starting_bank
from memskill_cli.utils import files


def with_trained_epochs(found: ReleaseCheckpoint, base: Taken, settings: Config) -> Config:
    """``settings`` with the number of epochs that the checkpoint was trained for, or one inner epoch if unknown."""
    if found.outer_epochs is None or "train.inner_epochs" not in base.taken:
        return replace(settings, train=replace(settings.train, outer_epochs=1, inner_epochs=1))
    return replace(settings, train=replace(settings.train, outer_epochs=found.outer_epochs))


def skills_of(
    found: ReleaseCheckpoint, source: str | None, settings: Config, notice: Callable[[str], None]
) -> SkillBank:
    """The skills of the file, or those that ``source`` names. CheckpointError if the file's skills cannot be used."""
    if source is not None:
        given = starting_bank(source, noop=settings.controller.include_noop)
        return SkillBank(given.skills, capacity=settings.designer.capacity)
    instead = "use other skills: --skills FOLDER (for example the published skills/), or --skills seeds"
    if not found.operations:
        raise CheckpointError(f"{found.file} contains no skills", hint=instead)
    try:
        return bank_of(found.operations, found.capacity, found.new, notice)
    except SkillBankError as error:
        raise CheckpointError(f"{found.file}: {error.message}", hint=instead) from None


def make_run(
    runs_dir: Path,
    name: str,
    found: ReleaseCheckpoint,
    bank: SkillBank,
    settings: Config,
    data_dir: Path,
    measured: bool,
) -> RunDir:
    """Create a finished run with one stage and one checkpoint, which is its best.

    ``measured`` says whether ``bank`` comes from the file; then the reward in the file applies to it. Raises RunError
    if the name is in use.
    """
    settings = replace(settings, designer=replace(settings.designer, capacity=bank.capacity))
    done = settings.train.outer_epochs * settings.train.inner_epochs
    contents = Checkpoint(done, found.controller, found.optimizer, bank, _controller_state(found, done))
    snapshot = found.snapshot if measured else None
    what = f"imported from {found.file.name} (sha256 {found.sha256[:12]}), a checkpoint of the published code"
    stage = stages.Stage(
        number=0,
        bank=bank,
        reward=snapshot["reward"] if snapshot else None,
        is_best=True,
        checkpoint=done,
        change={"summary": what, "changes": []},
        rationale=what,
        kept=True,
    )

    return finished_run(runs_dir, name, settings, data_dir, contents, stage)


def finished_run(
    runs_dir: Path, name: str, settings: Config, data_dir: Path, contents: Checkpoint, stage: stages.Stage
) -> RunDir:
    """Create a finished run that was not trained here: one checkpoint and one stage. RunError if the name is in use."""

    def fill(run: RunDir) -> None:
        checkpoint.save(run.checkpoints, replace(contents, run=run.id))
        stages.write(run.stages, stage)
        contents.bank.save(run.skill_bank)
        files.write_atomic(run.metrics, b"")
        files.write_atomic(run.hard_cases, b"")

    digest = _data_digest(settings.dataset, data_dir)
    return RunDir.create(runs_dir, name, settings, digest, status="finished", fill=fill)


def _controller_state(found: ReleaseCheckpoint, done: int) -> dict[str, Any]:
    """The fields of a memskill checkpoint about its controller and its stage."""
    return {
        "dim": found.state_dim // 2,
        "skill_dim": found.skill_dim,
        "hidden": found.hidden,
        "window_start": max(0, done - found.explored),
        "rewards": [],
        "hard_cases": [],
    }


def _data_digest(dataset: str, data_dir: Path) -> str:
    """The digest of the training split, which further training needs; "" if it is not prepared."""
    try:
        manifest = load_manifest(dataset, data_dir)
    except DataError:
        return ""
    return manifest.digest_of("train") if "train" in manifest.splits else ""
