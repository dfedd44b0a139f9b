"""Check the ranges of settings, before the first paid call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memskill_cli.config.extension_points import NAMED_BY
from memskill_cli.config.settings import RANGES, Config, EnvConfig
from memskill_cli.errors import UsageError
from memskill_cli.utils.redaction import strip_credentials


def check(config: Config) -> None:
    """Raises UsageError, naming the setting, for values out of range."""
    for section in (config.train, config.eval):
        if section.chunk_overlap >= section.chunk_size:
            raise UsageError(
                f"chunk overlap {section.chunk_overlap} must be smaller than chunk size {section.chunk_size}",
                hint="each span starts (chunk size - chunk overlap) tokens after the one before",
            )
    tables = {part: table for part, table in asdict(config).items() if isinstance(table, dict)}
    values = {f"{part}.{name}": value for part, table in tables.items() for name, value in table.items()}
    _check_secrets(values)
    for name, registry in NAMED_BY.items():
        registry.check(values[name], name)
    for name, range_ in RANGES.items():
        value = values[name] if name in values else getattr(config, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} must be a finite number, not {value}")
        if value not in range_:
            raise UsageError(f"{name} must be {range_}, not {value}")
    _check_games(config.env)


def _check_secrets(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, str) and strip_credentials(value) != value:
            raise UsageError(
                f"{name} must not contain a user name, a password or a key: settings are stored in config.toml",
                hint="give keys in MEMSKILL_API_KEYS or with --keys FILE.toml",
            )


def _check_games(played: EnvConfig) -> None:
    for name, least, most in (
        ("trajectories", played.trajectories_min, played.trajectories_max),
        ("tasks", played.tasks_min, played.tasks_max),
    ):
        if least > most:
            raise UsageError(f"env.{name}_min {least} must not be above env.{name}_max {most}")
