"""Group-relative policy optimisation: PPO's clipped objective without a critic (GRPO; Shao et al., arXiv 2402.03300).

The episodes of an inner epoch are one group. The advantage of every step of an episode is the episode's reward,
standardised within the group:

    A_i = (R_i - mean(R)) / (std(R) + 1e-8)

Process rewards and the shares of single steps have no part in it. The mean of the loss is over steps, so a long episode
weighs more than a short one. All episodes of a group share the policy but not the trace, so the mean of the group is a
coarser baseline than with several samples of one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memskill_cli.training.ppo import Batch, PolicyUpdate, PPOStats, Targets, minimise
from memskill_cli.types import Episode


def group_advantages(rewards_E: Sequence[float], lengths: Sequence[int]) -> Tensor:
    """The advantage of each step, shape (N,), from the reward of each episode and its number of steps."""
    reward_E = torch.tensor(rewards_E, dtype=torch.float64)
    advantage_E = (reward_E - reward_E.mean()) / (reward_E.std(correction=0) + 1e-8)
    return advantage_E.repeat_interleave(torch.tensor(lengths)).float()


def update_policy(episodes: Sequence[Episode], policy: PolicyUpdate) -> PPOStats:
    """One update, in place. ``value_loss`` and ``explained_variance`` are 0, as there is no critic.

    Raises ValueError on episodes without a step.
    """
    group = [episode for episode in episodes if episode.steps]
    if not group:
        raise ValueError("an update needs at least one step")
    batch = Batch.of(group).to(policy.device)
    advantages_N = group_advantages([episode.reward for episode in group], batch.lengths).to(policy.device)
    # The value loss has no weight. It stays in the sum so that the optimizer has a state, of zeros, for the critic,
    # too: checkpoints hold one for every parameter.
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
