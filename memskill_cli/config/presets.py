"""What settings start from before anything is asked for: each benchmark's own values, then a preset's."""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]
"""Dotted names with values."""

_READ = {"eval.span_mode": "fixed-length", "eval.chunk_size": 512, "eval.chunk_overlap": 64}
DATASET_DEFAULTS: dict[str, Settings] = {
    "locomo": {**_READ, "eval.top_k": 7, "models.answer_max_tokens": 32},
    "longmemeval": {**_READ, "eval.top_k": 5, "models.answer_max_tokens": 512},
    "hotpotqa": {**_READ, "eval.top_k": 7, "models.answer_max_tokens": 512},
    "alfworld": {**_READ, "eval.top_k": 5, "models.answer_max_tokens": 32, "train.chunk_size": 2048},
}
"""What depends on the benchmark, as published. A run evaluated on another benchmark takes that one's values."""

_LLAMA = "openai/meta-llama/Llama-3.3-70B-Instruct"

PRESETS: dict[str, Settings] = {
    "default": {},
    # Small enough for the embedded model on two cores: minutes from nothing to a scored evaluation. One skill a span,
    # so that the choice can be seen to matter, and larger PPO steps than the paper's, since there are only three.
    "demo": {
        "train.outer_epochs": 1,
        "train.inner_epochs": 3,
        "train.batch_size": 3,
        "train.max_spans": 2,
        "train.top_k": 1,
        "controller.noop_seed": False,  # every one of these few spans has something to remember
        "memory.top_k": 6,
        "memory.max_actions": 6,
        "reward.query_ratio": 0.3,
        "eval.span_mode": "full-session",
        "eval.top_k": 1,
        "eval.judge": False,
        "ppo.learning_rate": 3e-3,
        "ppo.minibatch": 4,
        "ppo.epochs": 8,
        "ppo.target_kl": 1.0,
        "models.executor_max_tokens": 240,
    },
    # Every published setting, those that are also our defaults among them: a run's own values, or later defaults, must
    # not shine through.
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
        "memory.top_k": 20,
        "memory.fuse": "mean",
        "memory.tau": 1.0,
        "memory.parallel_spans": 1,
        # section 4: controller
        "controller.hidden": 256,
        "controller.p_min": 0.30,
        "controller.new_skill_epochs": 25,
        "controller.noop_seed": True,
        # section 5: reward
        "reward.kind": "f1",
        "reward.final_share": 0.60,
        "reward.decay": 0.9,
        "reward.process_quality": 0.10,
        "reward.process_failure": 0.05,
        "reward.query_ratio": 1.0,
        # section 6: PPO
        "ppo.gamma": 0.99,
        "ppo.lam": 0.95,
        "ppo.clip": 0.2,
        "ppo.value_weight": 0.5,
        "ppo.clip_vloss": False,
        "ppo.entropy_weight": 0.01,
        "ppo.learning_rate": 1e-4,
        "ppo.minibatch": 32,
        "ppo.epochs": 2,
        "ppo.max_grad_norm": 0.5,
        "ppo.target_kl": 0.02,
        # section 7: designer
        "designer.max_changes": 3,
        "designer.every": 1,
        "designer.capacity": 30,
        "designer.refine_only": False,
        "designer.prefer_new_skills": True,
        "designer.judged_share": 0.25,
        "designer.rounds": 3,
        "designer.tries": 3,
        "designer.max_cycles": 20,
        "designer.patience": 5,
        "designer.f1_threshold": 0.5,
        "designer.window": 100,
        "designer.pool": 2000,
        "designer.clusters": 5,
        "designer.per_cluster": 3,
        "designer.cases": 15,
        "designer.retrieved": 20,
        # section 8: training and evaluation
        "train.outer_epochs": 10,
        "train.inner_epochs": 100,
        "train.batch_size": 4,
        "train.span_mode": "full-session",
        "train.chunk_size": 512,
        "train.chunk_overlap": 64,
        "train.top_k": 3,
        "train.max_spans": 0,
        "train.evolve": True,
        "eval.num_memories": 0,
        "eval.judge": True,
        "eval.judge_prompt": "general",
        "eval.max_spans": 0,
    },
}

_PRESETS_BY_DATASET: dict[str, dict[str, Settings]] = {
    "demo": {
        # Documents are one long session, more than the embedded model can read at once.
        "hotpotqa": {"eval.span_mode": "fixed-length"},
        # A step is a call: who doesn't find the way in so many, on two cores, would not in fifty either.
        "alfworld": {"alfworld.steps": 12, "alfworld.workers": 2},
    },
    "paper": {
        **DATASET_DEFAULTS,
        "alfworld": {
            **DATASET_DEFAULTS["alfworld"],
            "train.batch_size": 16,
            "alfworld.trajectories_min": 40,
            "alfworld.trajectories_max": 60,
            "alfworld.tasks_min": 5,
            "alfworld.tasks_max": 5,
            "alfworld.same_type": 1.0,
            "alfworld.memory": "all",
            "alfworld.temperature": 0.0,
            "alfworld.top_p": 1.0,
            "alfworld.inventory": True,
            "alfworld.steps": 50,
        },
    },
}


def dataset_settings(dataset: str) -> Settings:
    """The benchmark's own values; nothing for a name that is no benchmark (who reads the data will say so)."""
    return DATASET_DEFAULTS.get(dataset, {})


def preset_settings(preset: str, dataset: str) -> Settings:
    """What a preset sets on a benchmark."""
    return {**PRESETS[preset], **_PRESETS_BY_DATASET.get(preset, {}).get(dataset, {})}
