"""Registries of the parts that settings name: rewards, credit, algorithms, encoders and retrievers.

They stand below the packages that define the parts, so that a setting's name is checked before anything is imported.
What a part must be is said where it is used, which is also where its ``register_…`` decorator is.
"""

from __future__ import annotations

from typing import Any

from memskill_cli.utils.registry import Registry

REWARDS: Registry[Any] = Registry(
    "reward",
    "memskill.rewards",
    {"f1": "memskill_cli.rollout.rewards:F1Reward", "judge": "memskill_cli.rollout.rewards:JudgeReward"},
)
CREDITS: Registry[Any] = Registry(
    "credit assignment", "memskill.credit", {"final-decay": "memskill_cli.rollout.rewards:final_decay"}
)
ALGORITHMS: Registry[Any] = Registry(
    "algorithm",
    "memskill.algorithms",
    {
        "ppo": "memskill_cli.training.ppo:update_policy",
        "group-relative": "memskill_cli.training.group_relative:update_policy",
    },
)
RETRIEVERS: Registry[Any] = Registry(
    "retriever", "memskill.retrievers", {"dense": "memskill_cli.agent.answerer:dense_retriever"}
)
ENCODERS: Registry[Any] = Registry("encoder", "memskill.encoders", {})
"""Encoders of others. Our own are specs, which :mod:`memskill_cli.memory.encoder_specs` reads."""

NAMED_BY: dict[str, Registry[Any]] = {
    "reward.kind": REWARDS,
    "reward.credit": CREDITS,
    "train.algorithm": ALGORITHMS,
    "memory.retriever": RETRIEVERS,
}
"""Settings whose value is the name of a part."""
