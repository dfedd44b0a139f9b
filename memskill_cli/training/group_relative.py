"""GRPO, group relative policy optimisation: PPO's clipped objective without a critic (DeepSeekMath, arXiv 2402.03300).

A group has the ``train.group_size`` episodes of a batch that read the same trace and are asked the same queries; only
the random choices of skills differ. The advantage of episode i is its reward, standardised within the group:

    A_i = (R_i - mean(R)) / (std(R) + 1e-8)

All steps of an episode get it where the credit assignment divides R in the same proportions in every episode, as the
paper's does. In general step t gets its share c of R, standardised over the steps of the group that read the same span:

    A_{i,t} = (c_{i,t} - mean(c_t)) / (std(c_t) + 1e-8)

which is A_i if c_{i,t} = w_t R_i. With a group size of 1 every episode reads its own trace. Then the batch is one
group, and all steps of an episode get A_i. Process rewards have no part in an advantage. The loss is a mean over steps,
so a long episode has more weight than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memskill_cli.training.ppo import Batch, PolicyUpdate, PPOStats, Targets, minimise
from memskill_cli.types import Episode


def group_advantages(episodes: Sequence[Episode], group_size: int) -> Tensor:
    """The advantage of each step, shape (N,), episode by episode.

    All episodes of a group have the same number of steps, except if ``group_size`` is 1. The sums are in float64,
    because the rewards of a group may be almost equal.
    """
    if group_size == 1:
        advantages_E = _standardise([[episode.reward] for episode in episodes])[:, 0]
        lengths = [len(episode.steps) for episode in episodes]
        return advantages_E.repeat_interleave(torch.tensor(lengths)).float()
    groups = [episodes[first : first + group_size] for first in range(0, len(episodes), group_size)]
    shares = ([[step.reward - step.process_reward for step in episode.steps] for episode in group] for group in groups)
    return torch.cat([_standardise(shares_ET).flatten() for shares_ET in shares]).float()


def _standardise(rewards_ET: Sequence[Sequence[float]]) -> Tensor:
    """Each column minus its mean, divided by its population standard deviation plus 1e-8."""
    reward_ET = torch.tensor(rewards_ET, dtype=torch.float64)
    return (reward_ET - reward_ET.mean(0)) / (reward_ET.std(0, correction=0) + 1e-8)


def update_policy(episodes: Sequence[Episode], policy: PolicyUpdate) -> PPOStats:
    """One update, in place. ``value_loss`` and ``explained_variance`` are 0 because no critic is used.

    Raises ValueError if no episode has a step.
    """
    if not any(episode.steps for episode in episodes):
        raise ValueError("an update needs at least one step")
    batch = Batch.of(episodes).to(policy.device)
    advantages_N = group_advantages(episodes, policy.group_size).to(policy.device)
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


update_policy.grouped = True  # type: ignore[attr-defined]  # see training/algorithms.py
