"""PPO against numbers computed by hand, and its effect on a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.agent.controller import Controller, Exploration, select_skills
from memskill_cli.config import PPOConfig
from memskill_cli.training.ppo import Batch, PPOStats, explained_variance, gae, on_device, update
from memskill_cli.types import Episode, ExecutorResult, Step

NOTHING = ExecutorResult((), {})
ROWS = ("states_N2D", "chosen_NK", "log_probs_N", "values_N", "exploration_bonus_N", "rewards_N")


def test_gae_against_a_hand_worked_example() -> None:
    # gamma 0.5, lambda 0.5; one episode: r = 1, 2; V = 0.5, 1
    # delta_1 = 2 + 0 - 1 = 1; delta_0 = 1 + 0.5 * 1 - 0.5 = 1; A_1 = 1; A_0 = 1 + 0.25 * 1
    # a second episode of one step: r = 3, V = 1: A = 2, independent of the first
    advantages = gae(torch.tensor([1.0, 2, 3]), torch.tensor([0.5, 1, 1]), [2, 1], 0.5, 0.5)
    assert advantages.tolist() == pytest.approx([1.25, 1.0, 2.0])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_gae_equals_the_recursion(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, sum(lengths)))
    expected, start = [], 0
    for length in lengths:
        running, out = 0.0, []
        for t in reversed(range(start, start + length)):
            following = values[t + 1] if t + 1 < start + length else 0.0
            running = rewards[t] + 0.99 * following - values[t] + 0.99 * 0.95 * running
            out.append(running)
        expected += out[::-1]
        start += length
    ours = gae(torch.tensor(rewards), torch.tensor(values), lengths, 0.99, 0.95)
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


def test_explained_variance_against_a_hand_worked_example() -> None:
    # the variance of the returns 1, 2, 5 is 26/9; that of the residuals 0, 0, 2 (values 1, 2, 3) is 8/9
    assert explained_variance(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 5])) == pytest.approx(1 - 8 / 26)
    assert explained_variance(torch.tensor([1.0, 0]), torch.tensor([0.0, 1])) == pytest.approx(-3)


def test_explained_variance_is_a_number_even_where_it_is_undefined() -> None:
    assert explained_variance(torch.tensor([1.0]), torch.tensor([2.0])) == 0.0
    assert explained_variance(torch.tensor([1.0, 2]), torch.tensor([1.0, 2])) == pytest.approx(1)


def play(controller: Controller, skills: torch.Tensor, good: int, seed: int) -> list[Episode]:
    """Episodes of one step, with reward 1 if the good skill was drawn first."""
    generator = torch.Generator().manual_seed(seed)
    episodes = []
    for _ in range(32):
        state = np.ones(8, dtype=np.float32) / 8**0.5
        drawn = select_skills(controller, state, skills, 2, generator=generator)
        reward = float(drawn.skills[0] == good)
        episodes.append(Episode("t", (Step(state, drawn, NOTHING, 0.0, reward),), (), reward))
    return episodes


def test_updates_raise_the_probability_of_the_better_skill() -> None:
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    optimizer = torch.optim.Adam(controller.parameters(), lr=3e-3)
    state = torch.ones(1, 8) / 8**0.5
    start = controller(state, skills).logits_NS.softmax(1)[0, 2].item()
    probabilities = []
    for epoch in range(12):
        batch = Batch.of(play(controller, skills, good=2, seed=epoch))
        stats = update(
            controller, optimizer, batch, skills, torch.zeros(4), PPOConfig(), torch.Generator().manual_seed(epoch)
        )
        assert stats.approx_kl >= 0
        assert 0 <= stats.clipfrac <= 1
        assert all(np.isfinite(list(vars(stats).values())))
        probabilities.append(controller(state, skills).logits_NS.softmax(1)[0, 2].item())
    assert probabilities[0] > start
    assert probabilities[-1] > 2 * start


class CPUStepAdam(torch.optim.Adam):
    """Adam whose step has the CPU as default device, on which torch 2.7 makes its step count."""

    def step(self, closure: Any = None) -> Any:
        with torch.device("cpu"):
            return super().step(closure)


def updated(device: str) -> dict[str, torch.Tensor]:
    """The weights of a controller after two updates on ``device``."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4, device="cpu")
    optimizer = CPUStepAdam(controller.parameters(), lr=3e-3)
    new = torch.tensor([True, False, False, True], device="cpu")
    with torch.device("cpu"):
        batch = Batch.of([*play(controller, skills, 1, 0), *play(controller, skills, 1, 1)])
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        with on_device(device, controller, optimizer):
            update(controller, optimizer, batch.to(device), skills.to(device), new.to(device), PPOConfig(), generator)
    return {**controller.state_dict(), **optimizer.state[next(controller.parameters())]}


def test_an_update_makes_no_tensor_on_another_device_than_its_own() -> None:
    """The default device is "meta", so a tensor made without a device would raise an error when it is used."""
    expected = updated("cpu")
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Controller, "seeded", on_the_cpu(Controller.seeded))
        found = updated("cpu")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def on_the_cpu(make: Callable[..., Controller]) -> Callable[..., Controller]:
    def made(*sizes: int, **more: int) -> Controller:
        with torch.device("cpu"):
            return make(*sizes, **more)

    return made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_update_on_cuda_is_that_of_the_cpu_but_for_rounding_and_comes_back() -> None:
    here, there = updated("cpu"), updated("cuda")
    assert all(value.device.type == "cpu" for value in there.values())
    assert all(torch.allclose(here[name], there[name], atol=1e-4) for name in here)


def test_a_batch_of_one_step_keeps_its_advantage_as_it_is() -> None:
    """One step has no deviation to divide by. The policy loss of an unchanged policy is minus the advantage."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    batch = Batch.of(play(controller, skills, 1, 0)[:1])
    still = torch.optim.SGD(controller.parameters(), lr=0.0)
    stats = update(controller, still, batch, skills, torch.zeros(4), PPOConfig(), torch.Generator())
    assert stats.explained_variance == 0.0
    assert stats.approx_kl == pytest.approx(0, abs=1e-6)
    advantage = batch.rewards_N.item() - batch.values_N.item()
    assert stats.policy_loss == pytest.approx(-advantage, abs=1e-5)
    assert abs(advantage) > 0.01, "otherwise this tests nothing"


class Watched(torch.optim.Adam):
    """Records the weights before each step, with which the metrics of its minibatch are computed."""

    def __init__(self, controller: Controller, lr: float) -> None:
        super().__init__(controller.parameters(), lr=lr)
        self.controller = controller
        self.before: list[dict[str, torch.Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        self.before.append({name: weight.clone() for name, weight in self.controller.state_dict().items()})
        return super().step(closure)


def watched_update(how: PPOConfig, lr: float) -> tuple[Watched, Batch, PPOStats]:
    """An update on 32 steps, with an optimizer that records the weights before each of its steps."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    batch, optimizer = Batch.of(play(controller, skills, 1, 1)), Watched(controller, lr)
    stats = update(controller, optimizer, batch, skills, torch.zeros(4), how, torch.Generator().manual_seed(0))
    return optimizer, batch, stats


def kl_by_hand(weights: dict[str, torch.Tensor], batch: Batch) -> float:
    """Mean of r - 1 - log r over a batch. r: ratio of the current and the old probability of its ordered pairs."""
    controller = Controller(8, 4, 16)
    controller.load_state_dict(weights)
    with torch.no_grad():
        p = controller(batch.states_N2D, torch.eye(4)).logits_NS.double().softmax(1).numpy()
    ratios = [
        row[first] * row[second] / (1 - row[first]) / np.exp(before)
        for row, (first, second), before in zip(p, batch.chosen_NK.tolist(), batch.log_probs_N.tolist(), strict=True)
    ]
    return float(np.mean([ratio - 1 - np.log(ratio) for ratio in ratios]))


@pytest.mark.parametrize(("minibatch", "steps_an_epoch"), [(64, 1), (32, 1), (12, 3), (8, 4)])
def test_all_epochs_are_made_while_the_policy_stays_where_it_is(minibatch: int, steps_an_epoch: int) -> None:
    optimizer, _, _ = watched_update(PPOConfig(update_epochs=5, minibatch_size=minibatch), lr=0.0)
    assert len(optimizer.before) == 5 * steps_an_epoch


def test_the_first_epoch_beyond_the_target_is_the_last() -> None:
    """There is one minibatch in each epoch, so an epoch's KL is that of the weights before its only step."""
    free, batch, _ = watched_update(PPOConfig(update_epochs=8, minibatch_size=32, target_kl=1e9), lr=0.02)
    kl = [kl_by_hand(weights, batch) for weights in free.before]
    assert len(kl) == 8
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] < kl[2] < kl[3], "otherwise the epochs below are not the first beyond their targets"
    for last in (2, 3):
        target = (kl[last - 1] + kl[last]) / 2
        stopped, _, stats = watched_update(PPOConfig(update_epochs=8, minibatch_size=32, target_kl=target), lr=0.02)
        assert len(stopped.before) == last + 1
        assert stats.approx_kl == pytest.approx(kl[last], rel=1e-3)
        learned, expected = stopped.controller.state_dict(), free.before[last + 1]
        assert all(torch.equal(learned[name], expected[name]) for name in expected), "the step of that epoch is done"


def test_the_kl_of_an_epoch_is_the_mean_over_its_minibatches() -> None:
    """The first epoch has four minibatches. A target between their mean and the last of them does not stop it."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).split(8)
    free, batch, _ = watched_update(PPOConfig(update_epochs=1, minibatch_size=8), lr=0.02)
    parts = [dataclasses.replace(batch, **{name: getattr(batch, name)[rows] for name in ROWS}) for rows in order]
    kl = [kl_by_hand(weights, part) for weights, part in zip(free.before, parts, strict=True)]
    mean, last = float(np.mean(kl)), kl[-1]
    assert mean < 0.9 * last, "otherwise this tests nothing"
    for target, epochs in ((0.9 * mean, 1), (1.1 * mean, 2)):
        optimizer, _, _ = watched_update(PPOConfig(update_epochs=2, minibatch_size=8, target_kl=target), lr=0.02)
        assert len(optimizer.before) == 4 * epochs


def test_a_target_of_0_stops_nothing() -> None:
    optimizer, _, stats = watched_update(PPOConfig(update_epochs=6, minibatch_size=32, target_kl=0.0), lr=0.05)
    assert stats.approx_kl > PPOConfig().target_kl
    assert len(optimizer.before) == 6


def test_the_stored_shift_is_applied_again() -> None:
    """An unchanged controller with the shifts of the rollout gives ratio 1: KL is 0 and nothing is clipped."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    new = torch.tensor([True, False, False, True])
    state = np.ones(8, dtype=np.float32) / 8**0.5
    generator = torch.Generator().manual_seed(0)
    drawn = [
        select_skills(controller, state, skills, 2, generator=generator, exploration=Exploration(new, 0.9, 1.0))
        for _ in range(8)
    ]
    assert all(choice.exploration_bonus > 0 for choice in drawn)
    episodes = [Episode("t", (Step(state, choice, NOTHING, 0.0, 1.0),), (), 1.0) for choice in drawn]
    still = torch.optim.SGD(controller.parameters(), lr=0.0)
    stats = update(controller, still, Batch.of(episodes), skills, new, PPOConfig(), torch.Generator())
    assert stats.approx_kl == pytest.approx(0, abs=1e-6)
    stats = update(controller, still, Batch.of(episodes), skills, ~new, PPOConfig(update_epochs=1), torch.Generator())
    assert stats.approx_kl > 1e-3


def test_an_empty_batch_is_refused() -> None:
    controller = Controller.seeded(4, 16, seed=0)
    empty = Batch(*(torch.zeros(0) for _ in range(6)), lengths=())
    with pytest.raises(ValueError, match="at least one step"):
        update(
            controller,
            torch.optim.SGD(controller.parameters(), lr=0.1),
            empty,
            torch.eye(4),
            torch.zeros(4),
            PPOConfig(),
            torch.Generator(),
        )


def test_the_weights_do_not_depend_on_the_number_of_threads() -> None:
    """The batch and the embeddings are large enough for torch to use several threads for a sum."""
    generator = torch.Generator().manual_seed(0)
    states, skills = torch.randn(300, 2048, generator=generator), torch.randn(30, 1024, generator=generator)
    values, rewards = torch.randn(2, 300, generator=generator)
    chosen = torch.stack([torch.randperm(30, generator=generator)[:3] for _ in range(300)])
    batch = Batch(states, chosen, torch.full((300,), -9.0), values, torch.zeros(300), rewards, (150, 150))
    learned, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            controller = Controller.seeded(1024, 256, 0)
            optimizer = torch.optim.Adam(controller.parameters())
            how, new = PPOConfig(update_epochs=1), torch.zeros(30, dtype=torch.bool)
            update(controller, optimizer, batch, skills, new, how, generator.manual_seed(1))
            learned.append(controller.state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])
