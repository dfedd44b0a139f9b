"""Resuming a run: load the newest valid checkpoint, and return all other files of the run to its state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memskill_cli.agent.hard_cases import HardCasePool
from memskill_cli.errors import CheckpointError
from memskill_cli.runs import checkpoint
from memskill_cli.skills import stages
from memskill_cli.training import metrics
from memskill_cli.utils import files
from memskill_cli.utils.rows import fault, numbered_rows

if TYPE_CHECKING:
    from memskill_cli.training.trainer import Trainer


def resume(trainer: Trainer) -> None:
    """Give a new ``trainer`` the state of its run. A run without a checkpoint begins with inner epoch 0.

    Raises CheckpointError if checkpoints were made and none is valid, or if the controller of the checkpoint has other
    dimensions than this run's settings.
    """
    run, notice = trainer.run, trainer.callbacks.notice
    checkpoint.remove_stale(run.checkpoints)
    found = checkpoint.load_latest(run.checkpoints, notice)
    if found is not None:
        _restore(trainer, found)
    elif stages.best(stages.read_all(run.stages)) is not None:
        raise CheckpointError(
            f"{run.checkpoints}: no valid checkpoint is left",
            hint="start a new run; model replies that were already paid for are in the cache",
        )
    inner_epochs = trainer.settings.train.inner_epochs
    trainer.rows = _kept_metrics(run.metrics, trainer.num_updates, inner_epochs, notice)
    _drop_steps(run.steps, trainer.num_updates, inner_epochs)
    if found is not None and found.state["rewards"] is None:
        outer = (trainer.num_updates - 1) // inner_epochs
        trainer.rewards = [row["episode_reward_mean"] for row in trainer.rows if row["outer"] == outer]
    trainer.evolution.truncate_after(trainer.num_updates, trainer.bank)
    if found is not None:
        trainer.export_artifacts()
        trainer.close_epoch()


def _restore(trainer: Trainer, found: checkpoint.Checkpoint) -> None:
    settings = trainer.settings
    size = found.state["dim"], found.skill_dim, found.state["hidden"]
    encoders = trainer.context.encoders
    own = encoders.state.dim, encoders.of_skills.dim, settings.controller.hidden
    if size != own:
        raise CheckpointError(
            f"the controller of run {trainer.run.name} has {size[0]}-d embeddings ({size[1]}-d of skills) and "
            f"{size[2]} hidden units, but {settings.encoders.state} has {own[0]} dimensions ({own[1]} for skills) and "
            f"controller.hidden is {own[2]}",
            hint="resume with the --encoder and the controller.hidden of the first start",
        )
    trainer.controller.load_state_dict(found.controller)
    checkpoint.restore_optimizer(trainer.optimizer, found.optimizer)
    trainer.bank, trainer.num_updates, trainer.exploration_start = (
        found.bank,
        found.num_updates,
        found.state["window_start"],
    )
    trainer.pool = HardCasePool.from_rows(settings.designer, found.state["hard_cases"])
    trainer.rewards = found.state["rewards"] or []
    trainer.scores = found.state.get("held_out")


def _drop_steps(file: Path, done: int, inner_epochs: int) -> None:
    """Remove the lines after the first ``done`` inner epochs, and damaged lines, from ``steps.jsonl``."""
    if file.exists():
        numbered = ((metrics.epoch_index(row, inner_epochs), row) for row in files.read_jsonl(file))
        kept = [row for number, row in numbered if number is not None and number < done]
        files.write_atomic(file, b"".join(map(files.to_json, kept)))


def _kept_metrics(file: Path, done: int, inner_epochs: int, notice: Callable[[str], None]) -> list[dict[str, Any]]:
    """The lines of the first ``done`` inner epochs. Later and damaged lines are removed from ``file``."""
    rows: dict[int, dict[str, Any]] = {}
    for line, row in numbered_rows(file):
        if problem := fault(row, metrics.LINE):
            notice(f"{file}:{line}: {problem}; the line is left out")
        elif (number := metrics.epoch_index(row, inner_epochs)) is not None:
            rows[number] = row
    if again := [number for number in rows if number >= done]:
        notice(f"{len(again)} inner epochs after {done} have no checkpoint and are run again")
    kept = [rows[number] for number in range(done) if number in rows]
    if lost := done - len(kept):
        notice(f"{file}: {lost} of {done} lines are missing or damaged")
    files.write_atomic(file, b"".join(map(files.to_json, kept)))
    return kept
