"""Map the options of commands and of library functions to settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memskill_cli.config import Config

SETTINGS = {
    "judge_model": "models.judge",
    "designer_model": "models.designer",
    "api_base": "models.api_base",
    "encoder": "encoders.state",
    "state_encoder": "encoders.state",
    "retriever": "encoders.retrieval",
    "span_mode": "{section}.span_mode",
    "chunk_size": "{section}.chunk_size",
    "chunk_overlap": "{section}.chunk_overlap",
    "top_k": "{section}.num_skills",
    "num_skills": "{section}.num_skills",
    "mem_top_k": "{memories}",
    "num_memories": "{memories}",
    "retrieval": "memory.retriever",
    "reward": "reward.kind",
    "judge": "eval.judge",
    "outer_epochs": "train.outer_epochs",
    "inner_epochs": "train.inner_epochs",
    "batch_size": "train.batch_size",
    "evolve": "train.evolve",
    "seed": "seed",
    "concurrency": "limits.concurrency",
    "max_cost": "limits.max_cost",
    "engine": "engine",
    "ray_address": "ray.address",
    "tracker": "tracker",
    "dataset": "dataset",
}
"""The setting of each option. ``{section}`` is ``train`` or ``eval``, and ``{memories}`` is in :data:`MEMORIES`.

Where an option of the command line has two names, the library has both; of two values the later one here counts.
"""
MEMORIES = {"train": "memory.num_memories", "eval": "eval.num_memories"}


def settings_of(
    options: Mapping[str, Any], section: str, warn: Callable[[str], None], base: Config | None = None
) -> Config:
    """The settings of a command from its options (typer's ``ctx.params``). ``base`` are the settings of the run.

    ``set_`` has texts ``section.key=value``, ``settings`` has values by dotted name; both take precedence over other
    options. Raises UsageError for unknown settings and invalid values.
    """
    from memskill_cli.config import load

    model = options.get("model")
    roles = {f"models.{role}": model for role in ("executor", "answer", "judge", "designer")}
    named = {
        setting.format(section=section, memories=MEMORIES[section]): options[option]
        for option, setting in SETTINGS.items()
        if options.get(option) is not None
    }
    return load(
        preset=options.get("preset") or "default",
        file=options.get("config"),
        sets=options.get("set_") or (),
        overrides={**roles, **named, **(options.get("settings") or {})},
        base=base,
        warn=warn,
    )
