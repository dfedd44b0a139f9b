"""Settings that have another name than in version 0.1. Old names are read, with a warning where a person typed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

RENAMED = {
    "memory.top_k": "memory.num_memories",
    "memory.fuse": "memory.pooling",
    "controller.p_min": "controller.new_skill_min_prob",
    "controller.noop_seed": "controller.include_noop",
    "reward.process_quality": "reward.process_reward_scale",
    "reward.process_failure": "reward.process_penalty_scale",
    "ppo.lam": "ppo.gae_lambda",
    "ppo.clip": "ppo.clip_coef",
    "ppo.value_weight": "ppo.vf_coef",
    "ppo.entropy_weight": "ppo.ent_coef",
    "ppo.minibatch": "ppo.minibatch_size",
    "ppo.epochs": "ppo.update_epochs",
    "train.top_k": "train.num_skills",
    "eval.top_k": "eval.num_skills",
    "designer.rounds": "designer.reflection_rounds",
    "designer.tries": "designer.max_attempts",
    "designer.window": "designer.case_max_age",
    "designer.pool": "designer.case_capacity",
    "designer.cases": "designer.max_cases",
    "designer.retrieved": "designer.memories_per_case",
    "alfworld.query": "alfworld.retrieval_query",
    "alfworld.deadline": "alfworld.step_timeout",
}
"""Name in version 0.1, name now."""
ADDED = {"memory.retriever": "dense", "reward.credit": "final-decay", "train.algorithm": "ppo"}
"""Settings that version 0.1 did not have, each with the value that does what that version did."""
_FORMER = {new: old for old, new in RENAMED.items()}


def current_names(flat: Mapping[str, Any], warn: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Dotted settings under their names of today; ``warn`` is told of each old one.

    Where both names are given, the new one counts.
    """
    found = dict(flat)
    for name, value in flat.items():
        if (new := RENAMED.get(name)) is not None:
            warn(f"the setting {name} is now called {new}; the old name will stop working in the next version")
            del found[name]
            found.setdefault(new, value)
    return found


def current_sections(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a table of sections, as a TOML file has them."""
    found = dict(table)
    for section, values in table.items():
        if isinstance(values, Mapping):
            flat = current_names({f"{section}.{name}": value for name, value in values.items()})
            found[section] = {name.partition(".")[2]: value for name, value in flat.items()}
    return found


def former_name(section: str, name: str) -> str:
    """What a setting of ``section`` was called in version 0.1: digests of settings use these names, so that the
    evaluations of that version are still found."""
    return _FORMER.get(f"{section}.{name}", f"{section}.{name}").partition(".")[2]


def digest_section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section as digests name them: under the names of version 0.1, and without later settings
    that have the value of :data:`ADDED`. So an evaluation of that version is found by the same digest."""
    full = {f"{section}.{name}": value for name, value in values.items()}
    return {
        former_name(section, name.partition(".")[2]): value
        for name, value in full.items()
        if name not in ADDED or value != ADDED[name]
    }
