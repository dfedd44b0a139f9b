"""``group_relative.update_policy`` against a simple implementation, and the effects of having no critic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.config import PPOConfig, RewardConfig
from memskill_cli.rollout.rewards import distribute_reward
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


def rewarded(reward: float, *shares: float, own: float = 0.0) -> Episode:
    """An episode with this reward, whose steps have these shares and a process reward each."""
    choice, nothing = SkillSelection((0,), 0.0, 0.0), ExecutorResult((), {})
    steps = (Step(np.zeros(2, np.float32), choice, nothing, own, share + own) for share in shares)
    return Episode("t", tuple(steps), (), reward)


def of_the_batch(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """The advantages of steps without a share, in a batch that is one group of different traces."""
    batch = [rewarded(reward, *[0.0] * length) for reward, length in zip(rewards, lengths, strict=True)]
    return group_advantages(batch, 1).tolist()


def test_with_different_traces_an_advantage_is_that_of_its_episode_within_the_batch() -> None:
    assert of_the_batch([1.0, 0.0], [1, 3]) == pytest.approx([1, -1, -1, -1])
    assert of_the_batch([0.3, 0.3, 0.3], [1, 1, 2]) == pytest.approx([0] * 4, abs=1e-6), "equal: no advantage"
    assert of_the_batch([0.7], [2]) == [0.0, 0.0], "a group of one episode has no deviation"
    close = of_the_batch([1e6, 1e6 + 0.01], [1, 1])
    assert close == pytest.approx([-1, 1], abs=1e-4), "the mean and the deviation are computed in float64"
    tiny = of_the_batch([1e-8, -1e-8], [1, 1])
    assert tiny == pytest.approx([0.5, -0.5]), "1e-8 is added to the deviation"


def test_a_group_is_standardised_by_itself() -> None:
    """Two groups of two: rewards 0.2 and 0.4, then 0.9 and 0.5. A batch as one group would give the first two < 0."""
    batch = [rewarded(reward, reward) for reward in (0.2, 0.4, 0.9, 0.5)]
    assert group_advantages(batch, 2).tolist() == pytest.approx([-1, 1, 1, -1], abs=1e-5)
    assert group_advantages(batch, 4).tolist() == pytest.approx(
        [x / 0.254951 for x in (-0.3, -0.1, 0.4, 0.0)], abs=1e-5
    )
    equal = [rewarded(0.3, 0.3, own=own) for own in (0.1, 0.01, -0.05, 0.0)]
    assert group_advantages(equal, 4).tolist() == pytest.approx([0] * 4, abs=1e-6), "process rewards have no part"


@pytest.mark.parametrize("own", [0.0, 0.07])
def test_with_the_papers_credit_all_steps_have_the_advantage_of_the_literature(own: float) -> None:
    """(R - mean(R)) / std(R): 0.3, 0.6 and 0.9 have the mean 0.6 and the deviation 0.2449."""
    batch = [rewarded(reward, *distribute_reward(reward, 3, RewardConfig()), own=own) for reward in (0.3, 0.6, 0.9)]
    expected = [x / 0.2449490 for x in (-0.3, 0.0, 0.3) for _ in range(3)]
    assert group_advantages(batch, 3).tolist() == pytest.approx(expected, abs=1e-5)


def test_with_another_credit_a_step_is_compared_with_the_steps_of_the_same_span() -> None:
    """In the first span both episodes earn the same; in the second, only the first one earns anything."""
    batch = [rewarded(1.0, 0.2, 0.8), rewarded(0.2, 0.2, 0.0)]
    assert group_advantages(batch, 2).tolist() == pytest.approx([0, 1, 0, -1], abs=1e-5)


def test_the_groups_of_a_batch_may_have_traces_of_different_lengths() -> None:
    batch = [rewarded(0.0, 0.0), rewarded(1.0, 1.0), rewarded(1.0, 0.5, 0.5), rewarded(0.0, 0.0, 0.0)]
    assert group_advantages(batch, 2).tolist() == pytest.approx([-1, 1, 1, 1, -1, -1], abs=1e-5)


def test_an_update_uses_the_groups_of_the_policy() -> None:
    """Two groups whose episodes earned the same: no gradient of the policy, except that of the entropy."""
    case = case_of(3, (2, 2, 3, 3))
    found = []
    for size in (1, 2):
        controller = Controller(2 * DIM, DIM, HIDDEN).double()
        controller.load_state_dict(case.weights)
        optimizer = torch.optim.Adam(controller.parameters(), lr=0.0)
        config = dataclasses.replace(CONFIG, ent_coef=0.0)
        generator = torch.Generator().manual_seed(7)
        policy = PolicyUpdate(
            controller, optimizer, case.skills, torch.tensor(case.new), config, generator, "cpu", size
        )
        batch = [
            dataclasses.replace(
                episode, steps=tuple(dataclasses.replace(step, reward=episode.reward) for step in episode.steps)
            )
            for episode in episodes(case, (0.1, 0.1, 0.8, 0.8))
        ]
        found.append(update_policy(batch, policy).policy_loss)
    assert abs(found[0]) > 1e-3
    assert found[1] == 0.0


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
