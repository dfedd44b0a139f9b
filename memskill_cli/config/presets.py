"""Presets: groups of settings to start from. What a preset sets for one dataset only is in the dataset's file."""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]
"""Values by dotted name."""

_LLAMA = "openai/meta-llama/Llama-3.3-70B-Instruct"

PRESETS: dict[str, Settings] = {
    "default": {},
    # Small enough for the embedded model on two cores: training and evaluation take minutes. One skill for each span,
    # so that the choice has a visible effect. Larger PPO steps than in the paper, because there are only three updates.
    "demo": {
        "train.outer_epochs": 1,
        "train.inner_epochs": 3,
        "train.batch_size": 3,
        "train.max_spans": 2,
        "train.num_skills": 1,
        "controller.include_noop": False,  # each of these few spans contains something to remember
        "memory.num_memories": 6,
        "memory.context_tokens": 250,  # the embedded model reads 80 prompt tokens a second
        "memory.max_actions": 6,
        "reward.query_ratio": 0.3,
        "eval.span_mode": "full-session",
        "eval.num_skills": 1,
        "eval.judge": False,
        "ppo.learning_rate": 3e-3,
        "ppo.minibatch_size": 4,
        "ppo.update_epochs": 8,
        "ppo.target_kl": 1.0,
        "models.executor_max_tokens": 240,
    },
    # Every published setting, also if it is a default: the result must not depend on a run's settings or on later
    # changes of the defaults.
    "paper": {
        # models and encoders of the published table; served by an OpenAI-compatible server (--api-base)
        "models.executor": _LLAMA,
        "models.answer": _LLAMA,
        "models.designer": _LLAMA,
        "models.judge": "openai/openai/gpt-oss-120b",
        "models.executor_max_tokens": 2048,
        "models.judge_max_tokens": 1024,
        "models.temperature": 0.0,
        "encoders.state": "Qwen/Qwen3-Embedding-0.6B",
        "encoders.skill": "",
        "encoders.retrieval": "contriever",
        # section 3: one step
        "memory.num_memories": 20,
        "memory.pooling": "mean",
        "memory.tau": 1.0,
        "memory.retriever": "dense",
        "memory.sources": False,
        "memory.context_tokens": 0,
        "memory.resolve_dates": False,
        "memory.protect": False,
        "memory.parallel_spans": 1,
        # section 4: controller
        "controller.hidden": 256,
        "controller.new_skill_min_prob": 0.30,
        "controller.new_skill_epochs": 25,
        "controller.include_noop": True,
        # section 5: reward
        "reward.kind": "f1",
        "reward.credit": "final-decay",
        "reward.final_share": 0.60,
        "reward.decay": 0.9,
        "reward.process_reward_scale": 0.10,
        "reward.process_penalty_scale": 0.05,
        "reward.query_ratio": 1.0,
        # section 6: PPO
        "ppo.gamma": 0.99,
        "ppo.gae_lambda": 0.95,
        "ppo.clip_coef": 0.2,
        "ppo.vf_coef": 0.5,
        "ppo.clip_vloss": False,
        "ppo.ent_coef": 0.01,
        "ppo.learning_rate": 1e-4,
        "ppo.minibatch_size": 32,
        "ppo.update_epochs": 2,
        "ppo.max_grad_norm": 0.5,
        "ppo.target_kl": 0.02,
        # section 7: designer
        "designer.max_changes": 3,
        "designer.every": 1,
        "designer.capacity": 30,
        "designer.refine_only": False,
        "designer.prefer_new_skills": True,
        "designer.judged_share": 0.25,
        "designer.gate": "rewards",
        "designer.evidence": False,
        "designer.reflection_rounds": 3,
        "designer.max_attempts": 3,
        "designer.max_cycles": 20,
        "designer.patience": 5,
        "designer.f1_threshold": 0.5,
        "designer.case_max_age": 100,
        "designer.case_capacity": 2000,
        "designer.clusters": 5,
        "designer.per_cluster": 3,
        "designer.max_cases": 15,
        "designer.memories_per_case": 20,
        # section 8: training and evaluation
        "train.algorithm": "ppo",
        "train.group_size": 4,  # without effect on PPO
        "train.curriculum": 0,
        "train.outer_epochs": 10,
        "train.inner_epochs": 100,
        "train.batch_size": 4,
        "train.span_mode": "full-session",
        "train.chunk_size": 512,
        "train.chunk_overlap": 64,
        "train.num_skills": 3,
        "train.max_spans": 0,
        "train.evolve": True,
        "eval.num_memories": 0,
        "eval.judge": True,
        "eval.judge_prompt": "general",
        "eval.max_spans": 0,
    },
}
