"""Proximal policy optimisation of the controller (section 6 of the method; Schulman et al., arXiv 1707.06347).

A batch has the steps of all episodes of an inner epoch, one episode after the other. Dimensions: N steps, K skills
chosen in each step, S skills in the bank (fixed within an inner epoch). Metric names are those of cleanrl.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from memskill_cli.agent.controller import Controller, top_k_log_prob
from memskill_cli.config import PPOConfig
from memskill_cli.types import Episode


@dataclass(frozen=True)
class Batch:
    """Steps of an inner epoch. ``lengths``: the number of steps of each episode, in order; their sum is N."""

    states_N2D: Tensor
    chosen_NK: Tensor
    log_probs_N: Tensor
    values_N: Tensor
    exploration_bonus_N: Tensor
    rewards_N: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Batch:
        steps = [step for episode in episodes for step in episode.steps]
        return cls(
            states_N2D=torch.from_numpy(np.stack([step.state for step in steps])),
            chosen_NK=torch.tensor([step.selection.skills for step in steps]),
            log_probs_N=torch.tensor([step.selection.log_prob for step in steps]),
            values_N=torch.tensor([step.selection.value for step in steps]),
            exploration_bonus_N=torch.tensor([step.selection.exploration_bonus for step in steps]),
            rewards_N=torch.tensor([step.reward for step in steps]),
            lengths=tuple(len(episode.steps) for episode in episodes if episode.steps),
        )

    def to(self, device: str) -> Batch:
        tensors: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class PPOStats:
    """Means over the minibatches of the last epoch. ``explained_variance`` is that of the values before the update."""

    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clipfrac: float
    explained_variance: float


def gae(rewards_N: Tensor, values_N: Tensor, lengths: Sequence[int], gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates, shape (N,), separately for each episode (arXiv 1506.02438).

    A_t = sum_l (gamma lam)^l delta_{t+l}  with  delta_t = r_t + gamma V_{t+1} - V_t, and V = 0 after the last step.
    All sums are one matrix product: the deltas, padded to (E, T), times a triangular matrix of powers, (T, T).
    """
    episodes, longest, device = len(lengths), max(lengths), rewards_N.device
    steps_T = torch.arange(longest, device=device)
    inside_ET = steps_T[None, :] < torch.tensor(lengths, device=device)[:, None]
    rewards_ET, values_ET = torch.zeros(2, episodes, longest + 1, dtype=torch.float64, device=device)
    rewards_ET[:, :longest][inside_ET] = rewards_N.double()
    values_ET[:, :longest][inside_ET] = values_N.double()
    deltas_ET = (rewards_ET[:, :-1] + gamma * values_ET[:, 1:] - values_ET[:, :-1]) * inside_ET
    ahead_TT = steps_T[:, None] - steps_T[None, :]
    powers_TT = torch.where(ahead_TT >= 0, (gamma * lam) ** ahead_TT.clamp(min=0).double(), 0.0)
    return (deltas_ET @ powers_TT)[inside_ET].float()


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var[returns - values] / Var[returns]; 0 if the returns do not vary, where it is undefined."""
    spread = returns_N.var(correction=0)
    if spread < 1e-12:
        return 0.0
    return float(1 - (returns_N - values_N).var(correction=0) / spread)


@dataclass(frozen=True)
class PolicyUpdate:
    """The objects that an algorithm updates in place, and its inputs other than the episodes.

    Weights and tensors are on ``device``. ``generator`` is seeded for this inner epoch and is the only source of
    randomness. ``group_size``: the number of successive episodes that read the same trace; 1 if there are no groups.
    """

    controller: Controller
    optimizer: torch.optim.Optimizer
    skills_SD: Tensor
    new_S: Tensor
    settings: PPOConfig
    generator: torch.Generator
    device: str
    group_size: int = 1


def update_policy(episodes: Sequence[Episode], policy: PolicyUpdate) -> PPOStats:
    """The algorithm ``ppo``: one :func:`update` with the steps of all episodes."""
    batch = Batch.of(episodes).to(policy.device)
    return update(
        policy.controller,
        policy.optimizer,
        batch,
        policy.skills_SD,
        policy.new_S,
        policy.settings,
        policy.generator,
    )


def update(
    controller: Controller,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    skills_SD: Tensor,
    new_S: Tensor,
    config: PPOConfig,
    generator: torch.Generator,
) -> PPOStats:
    """One PPO update, in place. ``new_S``: True for the skills whose logits were raised by a step's exploration bonus.

    All tensors are on one device (see :func:`on_device`). ``generator`` is on the CPU, so that it draws the same
    numbers for every device. Raises ValueError on an empty batch.
    """
    steps = len(batch.rewards_N)
    if steps == 0:
        raise ValueError("PPO needs at least one step")
    advantages_N = gae(batch.rewards_N, batch.values_N, batch.lengths, config.gamma, config.gae_lambda)
    returns_N = advantages_N + batch.values_N
    before = explained_variance(batch.values_N, returns_N)
    if steps > 1:
        advantages_N = (advantages_N - advantages_N.mean()) / (advantages_N.std(correction=0) + 1e-8)

    targets = Targets(advantages_N, returns_N)
    means = minimise(controller, optimizer, batch, targets, skills_SD, new_S, config, generator)
    policy_loss, value_loss, entropy, approx_kl, clipfrac = means
    return PPOStats(policy_loss, value_loss, entropy, approx_kl, clipfrac, before)


class Targets(NamedTuple):
    """The targets of an update: the advantage of each step, and the return that its value should predict."""

    advantages_N: Tensor
    returns_N: Tensor


def minimise(
    controller: Controller,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    targets: Targets,
    skills_SD: Tensor,
    new_S: Tensor,
    config: PPOConfig,
    generator: torch.Generator,
) -> list[float]:
    """Minimise the clipped objective in place, minibatch by minibatch.

    Returns means over the last epoch's minibatches: policy loss, value loss, entropy, approximate KL, clip fraction.
    """
    steps, (advantages_N, returns_N) = len(batch.rewards_N), targets
    measured: list[list[float]] = []
    for _ in range(config.update_epochs):
        measured = []
        order_N = torch.randperm(steps, generator=generator, device="cpu").to(returns_N.device)
        for rows in order_N.split(config.minibatch_size or steps):
            logits_BS, values_B = controller(batch.states_N2D[rows], skills_SD)
            logits_BS = logits_BS + batch.exploration_bonus_N[rows, None] * new_S
            log_ratio_B = top_k_log_prob(logits_BS, batch.chosen_NK[rows]) - batch.log_probs_N[rows]
            ratio_B = log_ratio_B.exp()

            clipped_B = ratio_B.clamp(1 - config.clip_coef, 1 + config.clip_coef)
            policy_loss = -torch.min(ratio_B * advantages_N[rows], clipped_B * advantages_N[rows]).mean()
            value_loss = 0.5 * _squared_errors(values_B, batch.values_N[rows], returns_N[rows], config).mean()
            entropy = torch.distributions.Categorical(logits=logits_BS).entropy().mean()
            loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy

            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(controller.parameters(), config.max_grad_norm)
            optimizer.step()

            with torch.no_grad():
                approx_kl = (ratio_B - 1 - log_ratio_B).mean()  # non-negative estimator
                clipfrac = ((ratio_B - 1).abs() > config.clip_coef).float().mean()
            measured.append([x.item() for x in (policy_loss, value_loss, entropy, approx_kl, clipfrac)])
        if config.target_kl and np.mean([row[3] for row in measured]) > config.target_kl:
            break
    means: list[float] = np.mean(measured, axis=0).tolist()
    return means


def _squared_errors(values_B: Tensor, before_B: Tensor, returns_B: Tensor, config: PPOConfig) -> Tensor:
    """Squared errors of the values, shape (B,). With ``clip_vloss``, the clipped value's error where it is larger."""
    errors_B = (values_B - returns_B).square()
    if not config.clip_vloss:
        return errors_B
    clipped_B = before_B + (values_B - before_B).clamp(-config.clip_coef, config.clip_coef)
    return torch.max(errors_B, (clipped_B - returns_B).square())


@contextmanager
def on_device(device: str, controller: Controller, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Move the weights and Adam's moments from the CPU to ``device`` for an update, and back afterwards."""

    def move(where: str) -> None:
        controller.to(where)
        for moments in optimizer.state.values():
            for name in moments.keys() - {"step"}:  # Adam keeps its step count on the CPU for weights on any device
                moments[name] = moments[name].to(where)

    move(device)
    try:
        yield
    finally:
        move("cpu")
