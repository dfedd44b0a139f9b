"""``group_relative.update_policy`` against a simple implementation, and the effects of having no critic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.config import PPOConfig
from memskill_cli.runs import checkpoint
from memskill_cli.training.group_relative import group_advantages, update_policy
from memskill_cli.training.ppo import PolicyUpdate, PPOStats
from memskill_cli.types import Episode, ExecutorResult, SkillSelection, Step

from . import reference_ppo as reference
from .test_ppo_reference import CONFIG, DIM, HIDDEN, Case, case_of

METRICS = ("policy_loss", "entropy", "approx_kl", "clipfrac")
LENGTHS, REWARDS = (4, 1, 3), (0.9, 0.2, 0.4)


def episodes(case: Case, rewards: Sequence[float] = REWARDS) -> list[Episode]:
    nothing = ExecutorResult((), {})
    return [
        Episode(
            f"t{number}",
            tuple(
                Step(
                    step.state.numpy(),
                    SkillSelection(step.chosen, step.log_prob, step.value, step.shift),
                    nothing,
                    0.0,
                    step.reward,
                )
                for step in steps
            ),
            (),
            reward,
        )
        for number, (steps, reward) in enumerate(zip(case.episodes, rewards, strict=True))
    ]


def ours(case: Case, config: PPOConfig, updates: int = 2) -> tuple[Controller, torch.optim.Optimizer, PPOStats]:
    controller = Controller(2 * DIM, DIM, HIDDEN).double()
    controller.load_state_dict(case.weights)
    optimizer = torch.optim.Adam(controller.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(7)
    policy = PolicyUpdate(controller, optimizer, case.skills, torch.tensor(case.new), config, generator, "cpu")
    for _ in range(updates):
        stats = update_policy(episodes(case), policy)
    return controller, optimizer, stats


def plain(case: Case, config: PPOConfig, updates: int = 2) -> tuple[reference.Weights, dict[str, float]]:
    """The clipped objective of ``reference_ppo`` with the standardised reward of the episode as advantage.

    Returns the weights and the means of the metrics over the minibatches of the last epoch.
    """
    mean = sum(REWARDS) / len(REWARDS)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in REWARDS) / len(REWARDS))
    steps = [(step, (r - mean) / deviation) for e, r in zip(case.episodes, REWARDS, strict=True) for step in e]
    without_critic = dataclasses.replace(config, vf_coef=0.0)
    weights, generator = dict(case.weights), torch.Generator().manual_seed(7)
    adam = reference.Adam(weights, config.learning_rate)
    for _ in range(updates * config.update_epochs):
        order, measured = torch.randperm(len(steps), generator=generator).tolist(), []
        for start in range(0, len(steps), config.minibatch_size):
            leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            rows = [steps[i] for i in order[start : start + config.minibatch_size]]
            found = [
                reference.one_step(leaves, step, advantage, 0.0, case.skills, case.new, without_critic)
                for step, advantage in rows
            ]
            loss = sum(
                torch.as_tensor(x["policy_loss"]) - config.ent_coef * torch.as_tensor(x["entropy"]) for x in found
            )
            derived = torch.autograd.grad(loss / len(rows), list(leaves.values()), materialize_grads=True)
            measured.append(
                {name: sum(float(torch.as_tensor(x[name]).detach()) for x in found) / len(rows) for name in METRICS}
            )
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in derived))
            scale = min(1.0, config.max_grad_norm / (norm + 1e-6))
            adam.step(weights, {name: scale * g for name, g in zip(leaves, derived, strict=True)})
    return weights, {name: sum(row[name] for row in measured) / len(measured) for name in METRICS}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change", [{}, {"clip_coef": 0.05}, {"vf_coef": 3.0}, {"minibatch_size": 3}, {"ent_coef": 0.2}]
)
def test_it_is_the_plain_version(seed: int, change: dict[str, float]) -> None:
    case, config = case_of(seed, LENGTHS), dataclasses.replace(CONFIG, **change)
    (controller, _, stats), (weights, metrics) = ours(case, config), plain(case, config)
    for name, tensor in weights.items():
        torch.testing.assert_close(controller.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert {name: getattr(stats, name) for name in METRICS} == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_the_rewards_and_values_of_steps_have_no_part_in_it() -> None:
    case = case_of(1, LENGTHS)
    others = [[step._replace(reward=9.0, value=-4.0) for step in steps] for steps in case.episodes]
    one, other = ours(case, CONFIG), ours(dataclasses.replace(case, episodes=others), CONFIG)
    assert all(torch.equal(x, other[0].state_dict()[name]) for name, x in one[0].state_dict().items())
    assert (one[2].value_loss, one[2].explained_variance) == (0.0, 0.0)


def test_an_advantage_is_that_of_its_episode_within_the_group() -> None:
    found = group_advantages([1.0, 0.0], [1, 3])
    assert found.tolist() == pytest.approx([1, -1, -1, -1])
    assert group_advantages([0.3, 0.3, 0.3], [1, 1, 2]).abs().max() < 1e-6, "equal rewards give no advantage"
    assert group_advantages([0.7], [2]).tolist() == [0.0, 0.0], "a group of one episode has no deviation"
    close = group_advantages([1e6, 1e6 + 0.01], [1, 1])
    assert close.tolist() == pytest.approx([-1, 1], abs=1e-4), "the mean and the deviation are computed in float64"
    tiny = group_advantages([1e-8, -1e-8], [1, 1])
    assert tiny.tolist() == pytest.approx([0.5, -0.5]), "1e-8 is added to the deviation"


def test_the_critic_stays_and_the_optimizer_has_a_state_for_it() -> None:
    """A checkpoint without the moments of every parameter is refused."""
    case = case_of(2, LENGTHS)
    controller, optimizer, _ = ours(case, CONFIG)
    for name in controller.state_dict():
        assert ("critic" in name) == torch.equal(controller.state_dict()[name], case.weights[name]), name
    tensors = checkpoint.optimizer_tensors(optimizer)
    assert {name.partition(".")[0] for name in tensors} == {str(i) for i in range(len(controller.state_dict()))}


def test_a_group_without_steps_is_refused() -> None:
    case = case_of(2, LENGTHS)
    empty = [dataclasses.replace(episode, steps=()) for episode in episodes(case)]
    controller = Controller(2 * DIM, DIM, HIDDEN)
    optimizer = torch.optim.Adam(controller.parameters())
    policy = PolicyUpdate(controller, optimizer, case.skills, torch.tensor(case.new), CONFIG, torch.Generator(), "cpu")
    with pytest.raises(ValueError, match="at least one step"):
        update_policy(empty, policy)
