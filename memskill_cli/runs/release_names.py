"""Settings of the published code by name, and the settings of memskill that correspond to them.

The published code stores ``config`` (its settings) and ``args`` (its command line) in every checkpoint. From ``args``
only the names in this module are read, because a fork may store API keys there.
"""

from __future__ import annotations

from typing import Any

DIRECT = {
    "mem_top_k": "memory.num_memories",
    "mem_top_k_eval": "eval.num_memories",
    "inference_session_workers": "memory.parallel_spans",
    "state_fusion_tau": "memory.tau",
    "action_top_k": "train.num_skills",
    "inner_epochs": "train.inner_epochs",
    "batch_size": "train.batch_size",
    "new_action_p_min": "controller.new_skill_min_prob",
    "new_action_bias_steps": "controller.new_skill_epochs",
    "final_reward_last_ratio": "reward.final_share",
    "reward_redistribution_decay": "reward.decay",
    "process_budget": "reward.process_reward_scale",
    "failure_budget": "reward.process_penalty_scale",
    "locomo_train_query_sampling_ratio": "reward.query_ratio",
    "gamma": "ppo.gamma",
    "gae_lambda": "ppo.gae_lambda",
    "clip_epsilon": "ppo.clip_coef",
    "value_coef": "ppo.vf_coef",
    "entropy_coef": "ppo.ent_coef",
    "controller_lr": "ppo.learning_rate",
    "minibatch_size": "ppo.minibatch_size",
    "ppo_epochs": "ppo.update_epochs",
    "max_grad_norm": "ppo.max_grad_norm",
    "target_kl": "ppo.target_kl",
    "max_ops": "designer.capacity",
    "designer_freq": "designer.every",
    "designer_max_changes": "designer.max_changes",
    "designer_refine_only": "designer.refine_only",
    "designer_new_skill_hint": "designer.prefer_new_skills",
    "stage_reward_fraction": "designer.judged_share",
    "designer_reflection_cycles": "designer.reflection_rounds",
    "op_evolution_trials": "designer.max_attempts",
    "max_designer_evolves": "designer.max_cycles",
    "designer_early_stop_patience": "designer.patience",
    "designer_f1_threshold": "designer.f1_threshold",
    "designer_failure_window_epochs": "designer.case_max_age",
    "designer_failure_pool_size": "designer.case_capacity",
    "designer_num_clusters": "designer.clusters",
    "designer_samples_per_cluster": "designer.per_cluster",
    "max_new_tokens": "models.executor_max_tokens",
    "temperature": "models.temperature",
    "seed": "seed",
}
"""Settings with the same meaning in memskill."""

RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "state_fusion": ("memory.pooling", {"mean": "mean", "sim_weighted": "softmax"}),
    "reward_metric": ("reward.kind", {"f1": "f1", "llm_judge": "judge"}),
    "skip_noop": ("controller.include_noop", {True: False, False: True}),
    "enable_designer": ("train.evolve", {True: True, False: False}),
}
"""Settings whose values have other names in memskill."""

DIRECT_ALFWORLD = {
    "alfworld_action_max_tokens": "models.answer_max_tokens",
    "alfworld_action_temperature": "env.temperature",
    "alfworld_action_top_p": "env.top_p",
    "alfworld_pair_same_type_prob": "env.same_type",
    "alfworld_pair_max_steps": "env.steps",
}
"""Like ``DIRECT``, for ALFWorld only."""

FIXED: dict[str, Any] = {
    "ema_alpha": 0.1,
    "noop_match_scale": 0.2,
    "shaping_scale": 1.0,
    "redistribute_reward": True,
    "stage_reward_use_moving_avg": False,
}
"""Settings of the published code that are constants in memskill; other values cannot be imported."""

IRRELEVANT = frozenset(
    (
        # read from the weights, the skills or the encoders instead
        *("controller_hidden_dim", "state_dim", "op_embedding_dim", "initial_ops", "outer_epochs", "dataset"),
        *("state_encoder", "op_encoder", "retriever", "model", "designer_model", "llm_judge_model"),
        # about the machine or files, or unused in the published code
        *("use_flash_attn", "encode_batch_size", "device", "memory_cache_suffix", "alfworld_pair_b_workers"),
        "inference_workers",
        *("hotpotqa_eval_file", "alfworld_eval_file", "alfworld_offline_data"),
        *("skip_load_operation_bank", "skip_load_snapshot_manager", "stage_reward_window"),
        *("collect_epochs_before_designer", "min_op_usage", "low_reward_threshold"),
        # follows from new_action_p_min
        "new_action_delta_max",
    )
)
"""Settings that do not affect results, or that are read elsewhere."""

_GROUPED = (
    *("vf_clip", "session_mode", "chunk_size", "chunk_overlap", "alfworld_pair_chunk_size"),
    *("alfworld_pair_a_min", "alfworld_pair_a_max", "alfworld_pair_b_size", "alfworld_eval_query_source"),
    "alfworld_include_inventory",
)
READ = frozenset((*DIRECT, *RENAMED, *DIRECT_ALFWORLD, *FIXED, *IRRELEVANT, *_GROUPED))
"""Names whose values are read from ``config`` and ``args``."""
