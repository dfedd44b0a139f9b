"""Settings that can never work are refused before anything is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memskill_cli.config.settings import AlfworldConfig, Config
from memskill_cli.errors import UsageError
from memskill_cli.redaction import bare

_ABOVE_0 = (
    *("train.outer_epochs", "train.inner_epochs", "train.batch_size", "train.top_k", "train.chunk_size"),
    *("train.keep_checkpoints", "eval.top_k", "eval.chunk_size", "memory.top_k", "limits.concurrency"),
    *("ppo.minibatch", "ppo.epochs", "controller.hidden", "designer.max_changes", "designer.rounds"),
    *("designer.tries", "designer.clusters", "models.timeout", "memory.tau", "alfworld.trajectories_min"),
    *("alfworld.tasks_min", "alfworld.steps", "alfworld.workers", "alfworld.deadline"),
)
_NOT_BELOW_0 = (
    *("train.chunk_overlap", "eval.chunk_overlap", "eval.context_tokens", "limits.max_cost"),
    *("models.retries", "models.temperature", "ray.workers", "ray.encoders"),
)


def check(config: Config) -> None:
    """Raises UsageError, naming the setting, for values out of range."""
    for section in (config.train, config.eval):
        if section.chunk_overlap >= section.chunk_size:
            raise UsageError(
                f"chunk overlap {section.chunk_overlap} must be smaller than chunk size {section.chunk_size}",
                hint="a window advances by size - overlap, so this would never end",
            )
    tables = {part: table for part, table in asdict(config).items() if isinstance(table, dict)}
    values = {f"{part}.{name}": value for part, table in tables.items() for name, value in table.items()}
    _check_secrets(values)
    for name in _ABOVE_0:
        if values[name] <= 0:
            raise UsageError(f"{name} must be above 0, not {values[name]}")
    for name in _NOT_BELOW_0:
        if values[name] < 0:
            raise UsageError(f"{name} must not be below 0, not {values[name]}")
    if not 0 < config.reward.query_ratio <= 1:
        raise UsageError(f"reward.query_ratio must be above 0 and at most 1, not {config.reward.query_ratio}")
    _check_games(config.alfworld)


def _check_secrets(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, str) and bare(value) != value:
            raise UsageError(
                f"{name} must not hold a user, a password or a key: settings are stored in config.toml",
                hint="give keys by MEMSKILL_API_KEYS or --keys FILE.toml",
            )


def _check_games(played: AlfworldConfig) -> None:
    for name, least, most in (
        ("trajectories", played.trajectories_min, played.trajectories_max),
        ("tasks", played.tasks_min, played.tasks_max),
    ):
        if least > most:
            raise UsageError(f"alfworld.{name}_min {least} must not be above alfworld.{name}_max {most}")
    if not 0 <= played.same_type <= 1:
        raise UsageError(f"alfworld.same_type must be from 0 to 1, not {played.same_type}")
