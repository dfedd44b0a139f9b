"""The functions that algorithms are called by: the same inputs for each, and everything on the policy's device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.training import group_relative, ppo
from memskill_cli.training.algorithms import Algorithm

from .test_group_relative import episodes
from .test_ppo_reference import CONFIG, DIM, HIDDEN, case_of

CASE = case_of(3, (4, 1, 3))
TENSORS_OF_A_BATCH = 6


def policy(device: str = "cpu") -> ppo.PolicyUpdate:
    controller = Controller(2 * DIM, DIM, HIDDEN).double()
    controller.load_state_dict(copy.deepcopy(CASE.weights))
    optimizer = torch.optim.Adam(controller.parameters(), lr=CONFIG.learning_rate)
    generator = torch.Generator().manual_seed(7)
    return ppo.PolicyUpdate(controller, optimizer, CASE.skills, torch.tensor(CASE.new), CONFIG, generator, device)


def test_ppo_is_one_update_with_the_steps_of_all_episodes() -> None:
    one, other = policy(), policy()
    batch = ppo.Batch.of(episodes(CASE))
    expected = ppo.update(one.controller, one.optimizer, batch, one.skills_SD, one.new_S, one.settings, one.generator)
    assert ppo.update_policy(episodes(CASE), other) == expected
    weights = other.controller.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in one.controller.state_dict().items())
    assert not torch.equal(weights["state_net.0.weight"], CASE.weights["state_net.0.weight"])
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize(
    ("algorithm", "moved"),
    [(ppo.update_policy, TENSORS_OF_A_BATCH), (group_relative.update_policy, TENSORS_OF_A_BATCH + 1)],
)
def test_the_batch_is_moved_to_the_device_of_the_policy(
    algorithm: Algorithm, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group-relative updates also move the advantages, which they compute outside of the batch."""
    devices: list[Any] = []

    def to(tensor: torch.Tensor, device: Any, *args: Any, **more: Any) -> torch.Tensor:
        devices.append(device)
        return tensor

    on_another = policy("cuda:7")
    monkeypatch.setattr(torch.Tensor, "to", to)
    algorithm(episodes(CASE), on_another)
    assert devices.count("cuda:7") == moved
