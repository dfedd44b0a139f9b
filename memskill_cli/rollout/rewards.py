"""What a step is worth (section 5 of the method).

A step's reward is its share of the episode reward R plus its own process reward.
"""

from __future__ import annotations

import numpy as np

from memskill_cli.config import RewardConfig
from memskill_cli.types import Action, Execution

NOOP_DISCOUNT = 0.2
"""Doing nothing, as asked, is worth this share of doing something as asked."""


def spread(reward: float, steps: int, config: RewardConfig) -> list[float]:
    """R over the steps of an episode, summing to R.

    ``final_share`` of it goes to the last step; the rest is spread over all T steps with weights proportional to
    decay^(T-1-t). With one step, all of it is that step's.
    """
    if steps == 1:
        return [reward]
    weights = config.decay ** np.arange(steps - 1, -1, -1)
    shares = (1 - config.final_share) * weights / weights.sum()
    shares[-1] += config.final_share
    return [float(share) * reward for share in shares]


def process_reward(chosen: set[Action], execution: Execution, steps: int, config: RewardConfig) -> float:
    """Whether the executor did what the chosen skills are for.

    ``chosen`` (S) holds the action types of the chosen skills, D those of the successful actions; q and f are the
    configured totals divided by the number of steps T. All actions failed: -f. No action at all: 0. S = D: q.
    Overlap: q |S & D| / |S | D|. Otherwise: -q. A match on NOOP alone counts ``NOOP_DISCOUNT`` of that.
    """
    quality, failure = config.process_quality / steps, config.process_failure / steps
    done = {action.action for action in execution.applied}
    if not done:
        return -failure if execution.attempted or execution.unreadable else 0.0
    common = chosen & done
    if not common:
        return -quality
    discount = NOOP_DISCOUNT if common == {Action.NOOP} else 1.0
    return quality * discount * len(common) / len(chosen | done)
