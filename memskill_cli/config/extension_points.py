"""Registries of the parts that settings name: rewards, credit, algorithms, encoders and retrievers.

They are below the packages that define the parts, so that a name in a setting can be checked without importing the
part. The interface of each part is documented at its ``register_…`` decorator, in the module that uses the part.
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
    "credit assignment",
    "memskill.credit",
    {
        "final-decay": "memskill_cli.rollout.rewards:final_decay",
        "evidence": "memskill_cli.rollout.evidence_credit:EvidenceCredit",
    },
)
ALGORITHMS: Registry[Any] = Registry(
    "algorithm",
    "memskill.algorithms",
    {
        "ppo": "memskill_cli.training.ppo:update_policy",
        "grpo": "memskill_cli.training.group_relative:update_policy",
    },
)
RETRIEVERS: Registry[Any] = Registry(
    "retriever",
    "memskill.retrievers",
    {
        "dense": "memskill_cli.memory.retrieval:dense_retriever",
        "lexical": "memskill_cli.memory.retrieval:lexical_retriever",
        "hybrid": "memskill_cli.memory.retrieval:hybrid_retriever",
    },
)
ENCODERS: Registry[Any] = Registry("encoder", "memskill.encoders", {})
"""Encoders of plug-ins. The built-in ones are specs, which :mod:`memskill_cli.memory.encoder_specs` parses."""

NAMED_BY: dict[str, Registry[Any]] = {
    "reward.kind": REWARDS,
    "reward.credit": CREDITS,
    "train.algorithm": ALGORITHMS,
    "memory.retriever": RETRIEVERS,
}
"""Settings whose value is the name of a part."""
