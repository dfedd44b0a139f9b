"""Rewards against the cases of section 5, computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.config import RewardConfig
from memskill_cli.rollout.rewards import distribute_reward, process_reward
from memskill_cli.types import Action, ActionStatus, ExecutorResult, MemoryAction

CONFIG = RewardConfig()
INS, UPD, DEL, NOOP = Action.INSERT, Action.UPDATE, Action.DELETE, Action.NOOP


@given(reward=st.floats(-2, 2), steps=st.integers(1, 200))
def test_the_episode_reward_is_spread_without_loss(reward: float, steps: int) -> None:
    shares = distribute_reward(reward, steps, CONFIG)
    assert len(shares) == steps
    assert sum(shares) == pytest.approx(reward, abs=1e-9)


def test_the_last_step_has_sixty_percent_and_its_share_of_the_rest() -> None:
    # weights 0.81, 0.9, 1 sum to 2.71
    assert distribute_reward(1.0, 3, CONFIG) == pytest.approx([0.4 * 0.81 / 2.71, 0.4 * 0.9 / 2.71, 0.6 + 0.4 / 2.71])
    assert distribute_reward(0.7, 1, CONFIG) == [0.7]


def did(*actions: Action, rejected: int = 0, unreadable: bool = False) -> ExecutorResult:
    return ExecutorResult(
        tuple(MemoryAction(a) for a in actions), {ActionStatus.BAD_INDEX: rejected} if rejected else {}, unreadable
    )


@pytest.mark.parametrize(
    ("chosen", "execution", "expected"),
    [
        ({INS}, did(rejected=2), -0.05),  # all actions failed
        ({INS}, did(unreadable=True), -0.05),
        ({INS}, did(), 0.0),  # no action at all
        ({INS}, did(INS, INS), 0.10),  # S = D
        ({INS, UPD}, did(INS, UPD, rejected=1), 0.10),
        ({NOOP}, did(NOOP), 0.02),  # S = D = {noop}
        ({INS, UPD}, did(INS), 0.10 * 1 / 2),  # overlap
        ({INS, UPD}, did(INS, DEL), 0.10 * 1 / 3),
        ({NOOP, INS}, did(NOOP), 0.10 * 0.2 * 1 / 2),  # overlap on noop alone
        ({UPD}, did(INS), -0.10),  # nothing in common
    ],
)
def test_process_reward(chosen: set[Action], execution: ExecutorResult, expected: float) -> None:
    assert process_reward(chosen, execution, 1, CONFIG) == pytest.approx(expected)
    assert process_reward(chosen, execution, 4, CONFIG) == pytest.approx(expected / 4)
