"""Settings that were renamed after version 0.1. Old names are read; where a user has typed one, there is a warning."""

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
    "alfworld.query": "env.retrieval_query",
    "alfworld.deadline": "env.step_timeout",
}
"""From the name in version 0.1 to the current name."""
SECTIONS = {"alfworld": "env"}
"""The same for sections, whose other settings only have another section."""
ADDED = {
    "memory.retriever": "dense",
    "memory.language": "english",
    "memory.reranker": "",
    "memory.sources": False,
    "memory.context_tokens": 0,
    "memory.memory_share": 0.4,
    "memory.resolve_dates": False,
    "memory.protect": False,
    "designer.gate": "rewards",
    "designer.gate_queries": 60,
    "designer.gate_margin": 0.05,
    "designer.evidence": False,
    "reward.credit": "final-decay",
    "train.algorithm": "ppo",
    "train.group_size": 4,
    "train.curriculum": 0,
    "models.parameters": {},
    "models.prices": {},
    "limits.max_skipped": 0.0,
}
"""Settings that version 0.1 did not have, each with the value that gives the behaviour of version 0.1."""
RENAMED_VALUES: Mapping[tuple[str, Any], Mapping[str, Any]] = {
    ("train.algorithm", "group-relative"): {"train.algorithm": "grpo", "train.group_size": 1},
}
"""Values that were renamed, by setting: the settings that now mean the same."""
_FORMER = {new: old for old, new in RENAMED.items()}
_FORMER_SECTIONS = {new: old for old, new in SECTIONS.items()}


def current_names(flat: Mapping[str, Any], warn: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The settings in ``flat`` (by dotted name) with their current names, and with the current names of values.

    ``warn`` is called for each old name.

    If both names of a setting are given, the value of the new name counts.
    """
    found = dict(flat)
    for name, value in flat.items():
        if (new := _current_name(name)) != name:
            warn(f"the setting {name} is now called {new}; the old name will stop working in the next version")
            del found[name]
            found.setdefault(new, value)
    for (name, old), settings in RENAMED_VALUES.items():
        if found.get(name) == old:
            now = ", ".join(f"{setting} = {value}" for setting, value in settings.items())
            warn(f"{name} = {old} is now called {now}; the old name will stop working in the next version")
            found = {**settings, **{key: value for key, value in found.items() if key != name}}
    return found


def _current_name(name: str) -> str:
    section, dot, inner = name.partition(".")
    moved = f"{SECTIONS[section]}.{inner}" if dot and section in SECTIONS else name
    return RENAMED.get(name, moved)


def current_sections(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same as :func:`current_names`, for a table of sections as in a TOML file.

    If both names of a section are given, only the section with the new name counts.
    """
    found = {}
    for section, values in table.items():
        new = SECTIONS.get(section, section)
        if new != section and new in table:
            continue
        found[new] = values
        if isinstance(values, Mapping):
            flat = current_names({f"{section}.{name}": value for name, value in values.items()})
            found[new] = {name.removeprefix(f"{new}."): value for name, value in flat.items()}
    return found


def former_section(section: str) -> str:
    """The name of ``section`` in version 0.1, which digests of settings use, as with :func:`former_name`."""
    return _FORMER_SECTIONS.get(section, section)


def former_name(section: str, name: str) -> str:
    """The name of a setting of ``section`` in version 0.1. Digests of settings use these names, so that the evaluations
    of that version are still found."""
    return _FORMER.get(f"{section}.{name}", f"{section}.{name}").partition(".")[2]


def digest_section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section as in digests: with their names in version 0.1, and without those of :data:`ADDED` that
    have the value given there. So an evaluation of that version has the same digest."""
    full = {f"{section}.{name}": value for name, value in values.items()}
    return {
        former_name(section, name.partition(".")[2]): value
        for name, value in full.items()
        if name not in ADDED or value != ADDED[name]
    }
