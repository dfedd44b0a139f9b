"""Check the ranges of settings, before the first paid call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memskill_cli.config.extension_points import NAMED_BY
from memskill_cli.config.settings import Config, EnvConfig
from memskill_cli.errors import UsageError
from memskill_cli.utils.redaction import strip_credentials

_ABOVE_0 = (
    *("train.outer_epochs", "train.inner_epochs", "train.batch_size", "train.num_skills", "train.chunk_size"),
    "train.group_size",
    *(
        "train.keep_checkpoints",
        "eval.num_skills",
        "eval.chunk_size",
        "eval.bootstrap",
        "memory.num_memories",
        "memory.tau",
    ),
    *("memory.parallel_spans", "memory.max_chars", "memory.max_actions", "limits.concurrency", "controller.hidden"),
    *("controller.new_skill_epochs", "ppo.clip_coef", "ppo.learning_rate", "ppo.update_epochs", "ppo.max_grad_norm"),
    *(
        "designer.max_changes",
        "designer.every",
        "designer.capacity",
        "designer.reflection_rounds",
        "designer.max_attempts",
    ),
    *("designer.patience", "designer.case_capacity", "designer.clusters", "designer.per_cluster", "designer.max_cases"),
    *("models.timeout", "models.executor_max_tokens", "models.answer_max_tokens", "models.judge_max_tokens"),
    *("models.designer_max_tokens", "env.trajectories_min", "env.tasks_min", "env.steps"),
    *("env.workers", "env.step_timeout"),
)
_NOT_BELOW_0 = (
    *("train.chunk_overlap", "train.max_spans", "eval.chunk_overlap", "eval.max_spans", "eval.context_tokens"),
    "memory.context_tokens",
    "train.curriculum",
    *("eval.num_memories", "limits.max_cost", "models.retries", "models.temperature", "env.temperature"),
    *(
        "reward.process_reward_scale",
        "reward.process_penalty_scale",
        "ppo.vf_coef",
        "ppo.ent_coef",
        "ppo.minibatch_size",
    ),
    *(
        "ppo.target_kl",
        "designer.max_cycles",
        "designer.gate_queries",
        "designer.case_max_age",
        "designer.memories_per_case",
        "ray.workers",
        "ray.encoders",
    ),
)
_FROM_0_TO_1 = (
    "memory.memory_share",
    "reward.final_share",
    "ppo.gamma",
    "ppo.gae_lambda",
    "designer.f1_threshold",
    "designer.gate_margin",
    "env.same_type",
    "limits.max_skipped",
)
_ABOVE_0_TO_1 = ("reward.decay", "reward.query_ratio", "designer.judged_share", "env.top_p")


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
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} must be a finite number, not {value}")
    for names, fits, range_ in (
        (_ABOVE_0, lambda value: value > 0, "above 0"),
        (_NOT_BELOW_0, lambda value: value >= 0, "0 or above"),
        (_FROM_0_TO_1, lambda value: 0 <= value <= 1, "from 0 to 1"),
        (_ABOVE_0_TO_1, lambda value: 0 < value <= 1, "above 0 and at most 1"),
        (("controller.new_skill_min_prob",), lambda value: 0 < value < 1, "between 0 and 1"),
    ):
        for name in names:
            if not fits(values[name]):
                raise UsageError(f"{name} must be {range_}, not {values[name]}")
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
