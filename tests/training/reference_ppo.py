"""A simple implementation of PPO (Schulman et al., arXiv 1707.06347), one step at a time, to compare with.

It uses no code of memskill_cli. All numbers are float64; networks are dicts of weights under the parameter names of
:class:`Controller`; gradients are torch's. Sections are those of the method's description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class Step(NamedTuple):
    """The inputs of PPO from one step."""

    state: Tensor
    chosen: tuple[int, ...]
    log_prob: float
    value: float
    shift: float
    reward: float


class Adam:
    """Adam (arXiv 1412.6980) with beta 0.9 and 0.999."""

    def __init__(self, weights: Weights, learning_rate: float, epsilon: float = 1e-8) -> None:
        self.learning_rate, self.epsilon, self.steps = learning_rate, epsilon, 0
        self.first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.second = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def step(self, weights: Weights, gradients: Weights) -> None:
        self.steps += 1
        for name, gradient in gradients.items():
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            first = self.first[name] / (1 - 0.9**self.steps)
            second = self.second[name] / (1 - 0.999**self.steps)
            weights[name] = weights[name] - self.learning_rate * first / (second.sqrt() + self.epsilon)


# --- section 4: the controller ---


def layers(weights: Weights, net: str, x: Tensor) -> Tensor:
    """Linear, ReLU, linear."""
    hidden = torch.relu(x @ weights[f"{net}.0.weight"].T + weights[f"{net}.0.bias"])
    return hidden @ weights[f"{net}.2.weight"].T + weights[f"{net}.2.bias"]


def forward(weights: Weights, state: Tensor, skills: Tensor) -> tuple[Tensor, Tensor]:
    """Logits over the skills, and the value, of one state: head([h_s ; h_a]) for each skill a, and head(h_s)."""
    of_state = torch.relu(layers(weights, "state_net", state))
    of_skills = torch.relu(layers(weights, "op_net", skills))
    pairs = torch.stack([torch.cat([of_state, of_skill]) for of_skill in of_skills])
    return layers(weights, "actor_head", pairs)[:, 0], layers(weights, "critic_head", of_state)[0]


def probabilities(logits: Tensor) -> Tensor:
    powers = (logits - logits.max().detach()).exp()
    return powers / powers.sum()


def log_prob(logits: Tensor, chosen: Sequence[int]) -> Tensor:
    """log pi(A) = sum_i [ log p(a_i) - log(1 - sum_{j<i} p(a_j)) ]"""
    p = probabilities(logits)
    total, drawn = torch.zeros((), dtype=p.dtype), torch.zeros((), dtype=p.dtype)
    for skill in chosen:
        total = total + torch.log(p[skill]) - torch.log(1 - drawn)
        drawn = drawn + p[skill]
    return total


# --- section 6: PPO ---


def advantages(episode: Sequence[Step], gamma: float, lam: float) -> list[float]:
    """GAE (arXiv 1506.02438) by its recursion, from the episode's last step to its first."""
    found, ahead, value_ahead = [], 0.0, 0.0
    for step in reversed(episode):
        error = step.reward + gamma * value_ahead - step.value
        ahead = error + gamma * lam * ahead
        value_ahead = step.value
        found.append(ahead)
    return found[::-1]


def normalised(numbers: Sequence[float]) -> list[float]:
    """Scale to mean 0 and population standard deviation 1. A single number is not changed."""
    if len(numbers) == 1:
        return list(numbers)
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / len(numbers))
    return [(x - mean) / (deviation + 1e-8) for x in numbers]


def variance(numbers: Sequence[float]) -> float:
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers) / len(numbers)


def update(
    weights: Weights,
    adam: Adam,
    episodes: Sequence[Sequence[Step]],
    skills: Tensor,
    new: Sequence[bool],
    config: Any,
    generator: torch.Generator,
) -> dict[str, Any]:
    """One update of ``weights`` and ``adam`` in place. Returns the metrics, and ``kls``: the mean KL of each epoch.

    ``new``: the skills whose logits were raised by a step's shift. ``generator`` draws the order of the steps.
    """
    steps = [step for episode in episodes for step in episode]
    raw = [a for episode in episodes for a in advantages(episode, config.gamma, config.gae_lambda)]
    returns = [a + step.value for a, step in zip(raw, steps, strict=True)]
    scaled = normalised(raw)
    size = config.minibatch_size or len(steps)
    kls: list[float] = []
    measured: list[dict[str, float]] = []
    for _ in range(config.update_epochs):
        order = torch.randperm(len(steps), generator=generator).tolist()
        measured = []
        for start in range(0, len(steps), size):
            leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            rows = order[start : start + size]
            found = [one_step(leaves, steps[i], scaled[i], returns[i], skills, new, config) for i in rows]
            mean = {name: sum(losses[name] for losses in found) / len(rows) for name in found[0]}
            loss = mean["policy_loss"] + config.vf_coef * mean["value_loss"]
            loss = loss - config.ent_coef * mean["entropy"]
            derived = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            gradients = dict(zip(leaves, derived, strict=True))
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
            scale = min(1.0, config.max_grad_norm / (norm + 1e-6))
            # detach: in torch 2.7 the zeros of materialize_grads require a gradient
            adam.step(weights, {name: scale * gradient.detach() for name, gradient in gradients.items()})
            measured.append({**{name: float(torch.as_tensor(x).detach()) for name, x in mean.items()}, "norm": norm})
        kls.append(sum(row["approx_kl"] for row in measured) / len(measured))
        if config.target_kl > 0 and kls[-1] > config.target_kl:
            break
    unexplained = variance([r - step.value for r, step in zip(returns, steps, strict=True)])
    spread = variance(returns)
    return {
        **{name: sum(row[name] for row in measured) / len(measured) for name in measured[0]},
        "explained_variance": 1 - unexplained / spread if spread > 1e-12 else 0.0,
        "kls": kls,
    }


def one_step(
    weights: Weights,
    step: Step,
    advantage: float,
    wanted: float,
    skills: Tensor,
    new: Sequence[bool],
    config: Any,
) -> dict[str, Tensor | float]:
    """The losses and the metrics of one step. ``wanted`` is its return."""
    logits, value = forward(weights, step.state, skills)
    logits = logits + torch.tensor([step.shift if is_new else 0.0 for is_new in new], dtype=logits.dtype)
    ratio = torch.exp(log_prob(logits, step.chosen) - step.log_prob)
    clipped = min(max(ratio, 1 - config.clip_coef), 1 + config.clip_coef)
    error = (value - wanted) ** 2
    if config.clip_vloss:
        moved = step.value + min(max(value - step.value, -config.clip_coef), config.clip_coef)
        error = max(error, (moved - wanted) ** 2)
    p = probabilities(logits)
    return {
        "policy_loss": -min(ratio * advantage, clipped * advantage),
        "value_loss": 0.5 * error,
        "entropy": -(p * torch.log(p)).sum(),
        "approx_kl": ratio.item() - 1 - math.log(ratio.item()),
        "clipfrac": float(abs(ratio.item() - 1) > config.clip_coef),
    }
