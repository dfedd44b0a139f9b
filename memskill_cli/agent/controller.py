"""The controller: a small network that selects an ordered top-K of skills per span (section 4 of docs/method.md).

Suffixes of tensor names: N steps, S skills of the bank (in order of name), K selected skills, D encoder dimension,
H hidden dimension.

    h_s = MLP(state)   h_a = MLP(e(skill description))
    logit z_a = actor_head([h_s ; h_a])       value V = critic_head(h_s)

K skills are drawn without replacement by Gumbel-top-K, and with p = softmax(z)

    log pi(A) = sum_i [ log p(a_i) - log(1 - sum_{j<i} p(a_j)) ]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from memskill_cli.types import Matrix, SkillSelection, Vector
from memskill_cli.utils import devices


class Policy(NamedTuple):
    """The controller's output for N states: ``logits_NS`` over the skills of the bank, and ``values_N``."""

    logits_NS: Tensor
    values_N: Tensor


class Controller(nn.Module):
    """State and skill towers with an actor and a critic head.

    Parameter names are those of released checkpoints: ``state_net.{0,2}``, ``op_net.{0,2}``, ``actor_head.{0,2}``,
    ``critic_head.{0,2}``.
    """

    def __init__(self, state_dim: int, skill_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.state_net = nn.Sequential(nn.Linear(state_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.op_net = nn.Sequential(nn.Linear(skill_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.actor_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.critic_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    @classmethod
    def seeded(cls, embedding_dim: int, hidden: int, seed: int, *, skill_dim: int | None = None) -> Controller:
        """A new controller with weights initialised from ``seed``.

        States have ``2 * embedding_dim`` dimensions, skills ``skill_dim`` (default ``embedding_dim``). Limits torch to
        one intra-op thread in this process, as for encoders: with more threads the last bits of the results depend on
        their number, and these matrices are too small to gain speed.
        """
        devices.torch_in_one_thread()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(2 * embedding_dim, skill_dim or embedding_dim, hidden)

    def forward(self, states_N2D: Tensor, skills_SD: Tensor) -> Policy:
        states_NH, skills_SH = self.state_net(states_N2D), self.op_net(skills_SD)
        # The first layer of actor_head over [h_s ; h_a] is the sum of two products. Computing them separately
        # multiplies N + S rows; concatenating all N x S pairs would multiply N * S.
        first = cast(nn.Linear, self.actor_head[0])
        for_state_HH, for_skill_HH = first.weight.chunk(2, dim=1)
        from_state_NH = functional.linear(states_NH, for_state_HH, first.bias)
        from_skill_SH = functional.linear(skills_SH, for_skill_HH)
        pairs_NSH = torch.relu(from_state_NH[:, None, :] + from_skill_SH[None, :, :])
        return Policy(self.actor_head[2](pairs_NSH).squeeze(-1), self.critic_head(states_NH).squeeze(-1))


def top_k_log_prob(logits_NS: Tensor, chosen_NK: Tensor) -> Tensor:
    """log pi of ordered draws without replacement, shape (N,).

    Computes log p(a_i) - log(1 - sum_{j<i} p(a_j)) as z(a_i) minus the log-sum-exp over the skills not drawn yet. The
    value is the same, without cancellation when the drawn skills have nearly all the probability.
    """
    total_N = logits_NS.new_zeros(logits_NS.shape[0])
    undrawn_NS = logits_NS
    for position in range(chosen_NK.shape[1]):
        drawn_N1 = chosen_NK[:, position : position + 1]
        total_N = total_N + (logits_NS.gather(1, drawn_N1).squeeze(1) - undrawn_NS.logsumexp(1))
        if position + 1 < chosen_NK.shape[1]:
            undrawn_NS = undrawn_NS.scatter(1, drawn_N1, -torch.inf)
    return total_N


def exploration_bonus(p_new: float, p_min: float, fade: float = 1.0) -> float:
    """The bonus added to the logits of new skills: ``fade`` times the delta that raises their total to ``p_min``.

    delta = log[ p_min (1 - p_new) / (p_new (1 - p_min)) ], capped at its value for p_new = 0.01; 0 if p_new is at
    least p_min. ``fade`` falls from 1 to 0 over the exploration window.
    """
    if p_new >= p_min or fade <= 0:
        return 0.0
    p_new = max(p_new, 0.01)
    return fade * max(0.0, math.log(p_min * (1 - p_new) / (p_new * (1 - p_min))))


@dataclass(frozen=True)
class Exploration:
    """Exploration of new skills: ``new_S`` is a mask of the new skills, ``fade`` the remaining share of the window."""

    new_S: Tensor
    new_skill_min_prob: float
    fade: float

    def bonus(self, logits_S: Tensor) -> float:
        if not self.new_S.any():
            return 0.0
        return exploration_bonus(logits_S.softmax(0)[self.new_S].sum().item(), self.new_skill_min_prob, self.fade)


SelectSkills = Callable[[Vector], SkillSelection]
"""Selects skills for a state: the controller, or a baseline."""


@torch.no_grad()
def select_skills(
    controller: Controller,
    state: Vector,
    skills_SD: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    exploration: Exploration | None = None,
) -> SkillSelection:
    """An ordered top-K for one state (2D,): Gumbel-top-K with a ``generator``, plain top-K without.

    K is min(k, S). PPO needs ``log_prob`` and ``exploration_bonus`` of the result to evaluate the step again.
    """
    logits_NS, values_N = controller(torch.from_numpy(state)[None], skills_SD)
    logits_S = logits_NS[0]
    bonus = exploration.bonus(logits_S) if exploration else 0.0
    if exploration and bonus:
        logits_S = logits_S + bonus * exploration.new_S
    keys_S = logits_S if generator is None else logits_S + gumbel(len(logits_S), generator)
    # A stable sort breaks ties in the same way on every machine.
    chosen_K = torch.sort(keys_S, descending=True, stable=True).indices[: min(k, len(logits_S))]
    log_prob = top_k_log_prob(logits_S[None], chosen_K[None])
    probabilities = tuple(logits_S.softmax(0)[chosen_K].tolist())
    return SkillSelection(tuple(chosen_K.tolist()), log_prob.item(), values_N.item(), bonus, probabilities)


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, shape (size,): -log(-log(u)), with u drawn in float64 so that it is never 0 or 1."""
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16)
    return -torch.log(-torch.log(uniform)).float()


def make_state(span: Vector, retrieved: Matrix, *, fuse: str = "mean", tau: float = 1.0) -> Vector:
    """The state [ e(x_t) ; fuse(e(m)) ], shape (2D,); the second half is zeros if nothing was retrieved.

    ``fuse`` "mean" is the mean of the retrieved embeddings. Any other value is their average, weighted by the softmax
    of cosine similarity / tau.
    """
    if len(retrieved) == 0:
        fused = np.zeros_like(span)
    elif fuse == "mean":
        fused = retrieved.mean(axis=0)
    else:
        scores = retrieved @ span / tau
        weights = np.exp(scores - scores.max())
        fused = (weights / weights.sum()) @ retrieved
    return np.concatenate([span, fused]).astype(np.float32)
