"""PPO against hand-worked numbers, and its effect on a policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.agent.controller import Controller, choose
from memskill_cli.config import PPOConfig
from memskill_cli.records import Episode, Execution, Step
from memskill_cli.training.ppo import Batch, explained_variance, gae, moved, update

NOTHING = Execution((), {})


def test_gae_against_a_hand_worked_example() -> None:
    # gamma 0.5, lambda 0.5; one episode: r = 1, 2; V = 0.5, 1
    # delta_1 = 2 + 0 - 1 = 1; delta_0 = 1 + 0.5 * 1 - 0.5 = 1; A_1 = 1; A_0 = 1 + 0.25 * 1
    # a second episode of one step: r = 3, V = 1: A = 2, untouched by the first
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


def test_explained_variance_is_a_number_even_where_it_is_undefined() -> None:
    assert explained_variance(torch.tensor([1.0]), torch.tensor([2.0])) == 0.0
    assert explained_variance(torch.tensor([1.0, 2]), torch.tensor([1.0, 2])) == pytest.approx(1)


def play(controller: Controller, skills: torch.Tensor, good: int, seed: int) -> list[Episode]:
    """Episodes of one step, worth 1 if the good skill was drawn first."""
    generator = torch.Generator().manual_seed(seed)
    episodes = []
    for _ in range(32):
        state = np.ones(8, dtype=np.float32) / 8**0.5
        drawn = choose(controller, state, skills, 2, generator=generator)
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


def updated(device: str) -> dict[str, torch.Tensor]:
    """What two updates on ``device`` make of a controller."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4, device="cpu")
    optimizer = torch.optim.Adam(controller.parameters(), lr=3e-3)
    new = torch.tensor([True, False, False, True], device="cpu")
    with torch.device("cpu"):
        batch = Batch.of([*play(controller, skills, 1, 0), *play(controller, skills, 1, 1)])
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        with moved(device, controller, optimizer):
            update(controller, optimizer, batch.to(device), skills.to(device), new.to(device), PPOConfig(), generator)
    return {**controller.state_dict(), **optimizer.state[next(controller.parameters())]}


def test_an_update_makes_no_tensor_on_another_device_than_its_own() -> None:
    """Whatever is made without a device would be made of nothing here, and mixing the two is an error."""
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


def test_one_step_batches_and_early_stop() -> None:
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    batch = Batch.of(play(controller, skills, 1, 0)[:1])
    wild = torch.optim.SGD(controller.parameters(), lr=0.0)
    stats = update(controller, wild, batch, skills, torch.zeros(4), PPOConfig(), torch.Generator())
    assert stats.explained_variance == 0.0
    assert stats.approx_kl == pytest.approx(0, abs=1e-6)
    fast = torch.optim.Adam(controller.parameters(), lr=0.05)
    batch = Batch.of(play(controller, skills, 1, 1))
    stats = update(controller, fast, batch, skills, torch.zeros(4), PPOConfig(epochs=50), torch.Generator())
    calm = PPOConfig().target_kl
    assert stats.approx_kl > calm  # the epoch that went too far was the last one measured


def test_the_stored_shift_is_applied_again() -> None:
    """Re-evaluating an unchanged controller with the rollout's shifts gives ratio 1: no KL, nothing clipped."""
    controller, skills = Controller.seeded(4, 16, seed=0), torch.eye(4)
    new = torch.tensor([True, False, False, True])
    from memskill_cli.agent.controller import Exploration

    state = np.ones(8, dtype=np.float32) / 8**0.5
    generator = torch.Generator().manual_seed(0)
    drawn = [
        choose(controller, state, skills, 2, generator=generator, exploration=Exploration(new, 0.9, 1.0))
        for _ in range(8)
    ]
    assert all(choice.shift > 0 for choice in drawn)
    episodes = [Episode("t", (Step(state, choice, NOTHING, 0.0, 1.0),), (), 1.0) for choice in drawn]
    still = torch.optim.SGD(controller.parameters(), lr=0.0)
    stats = update(controller, still, Batch.of(episodes), skills, new, PPOConfig(), torch.Generator())
    assert stats.approx_kl == pytest.approx(0, abs=1e-6)
    stats = update(controller, still, Batch.of(episodes), skills, ~new, PPOConfig(epochs=1), torch.Generator())
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
    """As many steps and embeddings as large as it takes for torch to share out a sum."""
    generator = torch.Generator().manual_seed(0)
    states, skills = torch.randn(300, 2048, generator=generator), torch.randn(30, 1024, generator=generator)
    values, rewards = torch.randn(2, 300, generator=generator)
    chosen = torch.stack([torch.randperm(30, generator=generator)[:3] for _ in range(300)])
    batch = Batch(states, chosen, torch.full((300,), -9.0), values, torch.zeros(300), rewards, (150, 150))
    learned, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        controller = Controller.seeded(1024, 256, 0)
        optimizer = torch.optim.Adam(controller.parameters())
        how = PPOConfig(epochs=1)
        update(controller, optimizer, batch, skills, torch.zeros(30, dtype=torch.bool), how, generator.manual_seed(1))
        learned.append(controller.state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])
