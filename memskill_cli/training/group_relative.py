"""Group-relative policy optimisation: PPO's clipped objective without a critic (GRPO; Shao et al., arXiv 2402.03300).

The episodes of an inner epoch are one group. The advantage of every step of an episode is the episode's reward,
standardised within the group:

    A_i = (R_i - mean(R)) / (std(R) + 1e-8)

Process rewards and the rewards of single steps are not used. The loss is a mean over steps, so a long episode has more
weight than a short one. The episodes of a group have the same policy but different traces, so the group mean is a less
precise baseline than the mean of several samples of one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memskill_cli.training.ppo import Batch, PolicyUpdate, PPOStats, Targets, minimise
from memskill_cli.types import Episode


def group_advantages(rewards_E: Sequence[float], lengths: Sequence[int]) -> Tensor:
    """The advantage of each step, shape (N,), from the reward and the number of steps of each episode, shapes (E,)."""
    reward_E = torch.tensor(rewards_E, dtype=torch.float64)
    advantage_E = (reward_E - reward_E.mean()) / (reward_E.std(correction=0) + 1e-8)
    return advantage_E.repeat_interleave(torch.tensor(lengths)).float()


def update_policy(episodes: Sequence[Episode], policy: PolicyUpdate) -> PPOStats:
    """One update, in place. ``value_loss`` and ``explained_variance`` are 0 because no critic is used.

    Raises ValueError if no episode has a step.
    """
    group = [episode for episode in episodes if episode.steps]
    if not group:
        raise ValueError("an update needs at least one step")
    batch = Batch.of(group).to(policy.device)
    advantages_N = group_advantages([episode.reward for episode in group], batch.lengths).to(policy.device)
    # The value loss has weight 0. It stays in the loss so that the critic's parameters get gradients of zero and the
    # optimizer has a state for them: a checkpoint must contain the state of every parameter.
    settings = replace(policy.settings, vf_coef=0.0)
    policy_loss, _, entropy, approx_kl, clipfrac = minimise(
        policy.controller,
        policy.optimizer,
        batch,
        Targets(advantages_N, batch.values_N),
        policy.skills_SD,
        policy.new_S,
        settings,
        policy.generator,
    )
    return PPOStats(policy_loss, 0.0, entropy, approx_kl, clipfrac, 0.0)
