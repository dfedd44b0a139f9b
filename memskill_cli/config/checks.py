"""Settings that can never work are refused before anything is paid for."""

from __future__ import annotations

from dataclasses import asdict

from memskill_cli.config.settings import Config
from memskill_cli.errors import UsageError
from memskill_cli.redaction import bare


def check(config: Config) -> None:
    """Raises UsageError, naming the setting, for values out of range."""
    for section in (config.train, config.eval):
        if section.chunk_overlap >= section.chunk_size:
            raise UsageError(
                f"chunk overlap {section.chunk_overlap} must be smaller than chunk size {section.chunk_size}",
                hint="a window advances by size - overlap, so this would never end",
            )
    for part, table in asdict(config).items():
        for name, text in table.items() if isinstance(table, dict) else ():
            if isinstance(text, str) and bare(text) != text:
                raise UsageError(
                    f"{part}.{name} must not hold a user, a password or a key: settings are stored in config.toml",
                    hint="give keys by MEMSKILL_API_KEYS or --keys FILE.toml",
                )
    positive = {
        "train.outer_epochs": config.train.outer_epochs,
        "train.inner_epochs": config.train.inner_epochs,
        "train.batch_size": config.train.batch_size,
        "train.top_k": config.train.top_k,
        "train.chunk_size": config.train.chunk_size,
        "train.keep_checkpoints": config.train.keep_checkpoints,
        "eval.top_k": config.eval.top_k,
        "eval.chunk_size": config.eval.chunk_size,
        "memory.top_k": config.memory.top_k,
        "limits.concurrency": config.limits.concurrency,
        "ppo.minibatch": config.ppo.minibatch,
        "ppo.epochs": config.ppo.epochs,
        "controller.hidden": config.controller.hidden,
        "designer.max_changes": config.designer.max_changes,
        "designer.rounds": config.designer.rounds,
        "designer.tries": config.designer.tries,
        "designer.clusters": config.designer.clusters,
        "models.timeout": config.models.timeout,
        "memory.tau": config.memory.tau,
        "alfworld.trajectories_min": config.alfworld.trajectories_min,
        "alfworld.tasks_min": config.alfworld.tasks_min,
        "alfworld.steps": config.alfworld.steps,
        "alfworld.workers": config.alfworld.workers,
        "alfworld.deadline": config.alfworld.deadline,
    }
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"{name} must be above 0, not {value}")
    for name, value in {
        "train.chunk_overlap": config.train.chunk_overlap,
        "eval.chunk_overlap": config.eval.chunk_overlap,
        "eval.context_tokens": config.eval.context_tokens,
        "limits.max_cost": config.limits.max_cost,
        "models.retries": config.models.retries,
        "models.temperature": config.models.temperature,
    }.items():
        if value < 0:
            raise UsageError(f"{name} must not be below 0, not {value}")
    if not 0 < config.reward.query_ratio <= 1:
        raise UsageError(f"reward.query_ratio must be above 0 and at most 1, not {config.reward.query_ratio}")
    played = config.alfworld
    for name, least, most in (
        ("trajectories", played.trajectories_min, played.trajectories_max),
        ("tasks", played.tasks_min, played.tasks_max),
    ):
        if least > most:
            raise UsageError(f"alfworld.{name}_min {least} must not be above alfworld.{name}_max {most}")
    if not 0 <= played.same_type <= 1:
        raise UsageError(f"alfworld.same_type must be from 0 to 1, not {played.same_type}")
