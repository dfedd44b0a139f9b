"""Checkpoints in the form of the published code, made by ``torch.save`` as it makes them, for tests.

Facts of the form: keys of the table, names of tensors, and where statistics stand. The names and texts are invented.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DIM, HIDDEN = 4, 8


class Policy(nn.Module):
    """The published networks, written as described: both towers, then a head over every pair laid side by side."""

    def __init__(self, dim: int = DIM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.state_net = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.op_net = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.actor_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.critic_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, states: Tensor, skills: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.empty(len(states), len(skills))
        values = torch.empty(len(states))
        for n, state in enumerate(states):
            h_s = self.state_net(state)
            values[n] = self.critic_head(h_s)
            for s, skill in enumerate(skills):
                logits[n, s] = self.actor_head(torch.cat([h_s, self.op_net(skill)]))
        return logits, values


def trained(dim: int = DIM, hidden: int = HIDDEN, updates: int = 3) -> tuple[Policy, torch.optim.Adam]:
    """A policy after some updates of Adam on noise."""
    torch.manual_seed(7)
    policy = Policy(dim, hidden)
    adam = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(updates):
        update(policy, adam)
    return policy, adam


def update(policy: nn.Module, adam: torch.optim.Optimizer) -> None:
    """One step of Adam along gradients that follow from torch's generator."""
    for parameter in policy.parameters():
        parameter.grad = torch.randn_like(parameter)
    adam.step()


def operation(name: str, action: str = "insert", **more: Any) -> dict[str, Any]:
    """A skill as the published ``Operation.to_dict`` gives it back, with its embedding."""
    statistics = {
        "usage_count": 12,
        "avg_reward": 0.25,
        "recent_rewards": [0.0, 0.5],
        "recent_usage_ema": 0.125,
        "created_at": "initial",
        "last_modified": "designer",
    }
    return {
        "name": name,
        "description": f"For spans that call for {name}.",
        "instruction_template": f"Purpose: {name} what is said.",
        "update_type": action,
        "meta_info": {**statistics, **more.pop("meta_info", {})},
        "embedding": [0.5] * DIM,
        **more,
    }


def bank(*operations: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = operations or (
        operation("insert"),
        operation("update", "update"),
        operation("delete", "delete"),
        operation("noop", "noop"),
        operation("capture_activity_details"),
    )
    return {"operations": {one["name"]: one for one in found}, "max_ops": 30, "skip_noop": False, **more}


def content(dim: int = DIM, hidden: int = HIDDEN, **more: Any) -> dict[str, Any]:
    """The table that the published ``save_checkpoint`` writes."""
    policy, adam = trained(dim, hidden)
    skills = bank()
    config = {
        "state_encoder": "Qwen/Qwen3-Embedding-0.6B",
        "op_encoder": "Qwen/Qwen3-Embedding-0.6B",
        "dataset": "locomo",
        "max_ops": 30,
        "mem_top_k": 5,
        "mem_top_k_eval": 5,
        "inner_epochs": 100,
        "outer_epochs": 10,
        "action_top_k": 2,
        "state_fusion": "sim_weighted",
        "state_fusion_tau": 0.5,
        "reward_metric": "llm_judge",
        "gamma": 0.9,
        "clip_epsilon": 0.1,
        "vf_clip": 0.0,
        "designer_max_changes": 2,
        "ema_alpha": 0.1,
        "designer_freq": 2,
        "state_dim": 2 * dim,
        "session_mode": "fixed-length",
        "chunk_size": 1024,
        "chunk_overlap": 128,
        "something_new": 5,
    }
    return {
        "checkpoint_version": 3,
        "epoch": 10,
        "completed_outer_epoch": 10,
        "controller_state_dict": policy.state_dict(),
        "optimizer_state_dict": adam.state_dict(),
        "operation_bank": skills,
        "operation_bank_new_operation_names": ["capture_activity_details"],
        "total_steps": 4321,
        "new_action_bias_active": True,
        "new_action_bias_step": 10,
        "args": {"seed": 11, "retriever": "dpr", "model": "some/model", "api_key": "sk-SECRET", "wandb_key": "SECRET"},
        "config": config,
        "rng_state": {
            "python_random_state": (3, tuple(range(2**31, 2**31 + 625)), None),
            "numpy_random_state": ("MT19937", np.arange(624, dtype=np.uint32), 624, 0, 0.0),
            "torch_rng_state": torch.get_rng_state(),
        },
        "snapshot_manager": {
            "snapshots": [
                {"stage_id": 0, "operation_bank_dict": bank(operation("insert")), "avg_reward": np.float64(0.1)},
                {"stage_id": 1, "operation_bank_dict": skills, "avg_reward": np.float64(0.375)},
            ],
            "best_snapshot_idx": 1,
            "pending_evolution_result": None,
        },
        "designer_state": {"case_collector": {"failure_pool": {}, "latest_epoch": 999}},
        "stage_rewards": [np.float64(0.3)],
        "training_logs": [{"reward": np.float32(0.5), "steps": [{"selected_op": ["insert"]}]}],
        **more,
    }


def save(file: Path, table: Any) -> Path:
    torch.save(table, file)
    return file


@contextmanager
def published_classes() -> Iterator[type]:
    """``src.operation_bank.Operation`` for as long as something is pickled with it."""
    package, module = types.ModuleType("src"), types.ModuleType("src.operation_bank")
    kind = type("Operation", (), {"__module__": "src.operation_bank", "__qualname__": "Operation"})
    module.Operation = kind  # type: ignore[attr-defined]
    sys.modules |= {"src": package, "src.operation_bank": module}
    try:
        yield kind
    finally:
        del sys.modules["src"], sys.modules["src.operation_bank"]
