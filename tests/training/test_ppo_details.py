"""The devices of PPO's tensors during an update, tested on the CPU; and very small advantages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.config import PPOConfig
from memskill_cli.training.ppo import Batch, on_device, update


def batch(rewards: list[float]) -> Batch:
    """Episodes of one step with value 0, in which two of four skills were drawn."""
    count = len(rewards)
    states = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(count)
    chosen = torch.tensor([[0, 1]] * count)
    return Batch(states, chosen, torch.full((count,), -2.5), zeros, zeros, torch.tensor(rewards), (1,) * count)


def test_a_batch_goes_to_a_device_with_all_its_tensors() -> None:
    here = batch([0.5, 0.25])
    there = here.to("meta")
    names = ("states_N2D", "chosen_NK", "log_probs_N", "values_N", "exploration_bonus_N", "rewards_N")
    assert {getattr(there, name).device.type for name in names} == {"meta"}
    assert {getattr(here, name).device.type for name in names} == {"cpu"}
    assert [getattr(there, name).shape for name in names] == [getattr(here, name).shape for name in names]
    assert there.lengths == (1, 1)


class Thing:
    """A stub of a tensor that records the devices it is moved to."""

    def __init__(self, been: tuple[Any, ...] = ()) -> None:
        self.been = been

    def to(self, where: Any) -> Thing:
        return Thing((*self.been, where))


class Weights(Thing):
    """A stub of a module, which is moved in place."""

    def to(self, where: Any) -> Weights:
        self.been = (*self.been, where)
        return self


class Optimizer:
    def __init__(self) -> None:
        self.state = {i: {"step": Thing(), "exp_avg": Thing(), "exp_avg_sq": Thing()} for i in range(2)}


@pytest.mark.parametrize("fails", [False, True])
def test_weights_and_moments_are_on_the_device_for_an_update_and_come_back(fails: bool) -> None:
    weights, optimizer = Weights(), Optimizer()
    try:
        with on_device("cuda:0", weights, optimizer):  # type: ignore[arg-type]
            assert weights.been == ("cuda:0",)
            assert {moments["exp_avg"].been for moments in optimizer.state.values()} == {("cuda:0",)}
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert weights.been == ("cuda:0", "cpu")
    for moments in optimizer.state.values():
        assert (moments["exp_avg"].been, moments["exp_avg_sq"].been) == (("cuda:0", "cpu"),) * 2
        assert moments["step"].been == (), "Adam's count of steps stays on the CPU"


def test_advantages_as_small_as_what_is_added_to_their_deviation_do_no_harm() -> None:
    controller, skills = Controller.seeded(4, 8, seed=0), torch.eye(4)
    optimizer = torch.optim.SGD(controller.parameters(), lr=0.1)
    tiny = batch([1e-8, -1e-8])
    stats = update(controller, optimizer, tiny, skills, torch.zeros(4), PPOConfig(update_epochs=1), torch.Generator())
    assert all(torch.tensor(list(vars(stats).values())).isfinite())
    assert all(parameter.isfinite().all() for parameter in controller.parameters())
