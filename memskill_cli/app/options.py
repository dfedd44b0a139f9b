"""What the options of a command mean, whether they were typed or given to a function of the library."""

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
    "retriever": "encoders.retrieval",
    "span_mode": "{section}.span_mode",
    "chunk_size": "{section}.chunk_size",
    "chunk_overlap": "{section}.chunk_overlap",
    "top_k": "{section}.num_skills",
    "mem_top_k": "{memories}",
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
"""Which setting each option is; ``{section}`` is the command's own (train or eval), so is the number of memories."""
MEMORIES = {"train": "memory.num_memories", "eval": "eval.num_memories"}


def settings_of(
    options: Mapping[str, Any], section: str, warn: Callable[[str], None], base: Config | None = None
) -> Config:
    """The settings of a command from its options (typer's ``ctx.params``); ``base`` are a run's own.

    ``set_`` are texts ``section.key=value``, ``settings`` are values by dotted name; both win over other options.
    Raises UsageError for anything that is no setting or makes no sense.
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
