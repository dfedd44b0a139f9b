"""What a query, an episode and a step are worth (section 5 of the method).

A *reward* scores one query; R, the episode reward, is the mean over the queries of an episode. A *credit assignment*
shares R over the steps of the episode. A step's reward is its share plus its own process reward. Rewards and credit
assignments are extension points (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np

from memskill_cli.config import DesignerConfig, RewardConfig
from memskill_cli.config.extension_points import CREDITS, REWARDS
from memskill_cli.errors import ModelError, PluginError
from memskill_cli.types import Action, ExecutorResult, QueryResult, Step

NOOP_DISCOUNT = 0.2
"""Doing nothing, as asked, is worth this share of doing something as asked."""


class Reward(ABC):
    """How a query is scored while training."""

    needs_judge: ClassVar[bool] = False
    """Whether the judge model scores every answer, which costs one call each."""

    @abstractmethod
    def of(self, result: QueryResult) -> float | None:
        """The score of one answer, from 0 to 1; None if it has none (``result.error``): it is then in no mean."""

    def threshold(self, designer: DesignerConfig) -> float:
        """A query scored below this is a hard case."""
        return designer.f1_threshold

    @property
    def measure(self) -> Literal["f1", "judge"]:
        """The score of an evaluation by which ``memskill evolve --judge-on`` compares two banks."""
        return "judge" if self.needs_judge else "f1"


class F1Reward(Reward):
    """Token F1 (in ALFWorld: success)."""

    def of(self, result: QueryResult) -> float | None:
        return result.f1


class JudgeReward(Reward):
    """The judge's score; everything below 1 is a hard case."""

    needs_judge = True

    def of(self, result: QueryResult) -> float | None:
        return result.judge

    def threshold(self, designer: DesignerConfig) -> float:
        return 1.0


Credit = Callable[[float, Sequence[Step], RewardConfig], Sequence[float]]
"""From the episode reward, the T steps of the episode and the settings to T shares."""

register_reward = REWARDS.named
"""``@register_reward("name")`` over a :class:`Reward` makes it ``reward.kind = "name"``."""
register_credit = CREDITS.named
"""``@register_credit("name")`` over a :data:`Credit` makes it ``reward.credit = "name"``."""


def reward_of(settings: RewardConfig) -> Reward:
    """The reward that ``reward.kind`` names. UsageError if there is none."""
    part = REWARDS.get(settings.kind)
    reward: Reward = part() if isinstance(part, type) else part
    return reward


def episode_reward(answers: Sequence[QueryResult], reward: Reward) -> float:
    """R: the mean score of the queries that have one. Raises ModelError if none has."""
    known = [score for answer in answers if (score := reward.of(answer)) is not None]
    if not known:
        raise ModelError(
            f"none of {len(answers)} answers could be scored: {answers[0].error if answers else 'no queries'}",
            hint="nothing is lost: the same command with --resume goes on",
        )
    return float(np.mean(known))


def step_shares(reward: float, steps: Sequence[Step], settings: RewardConfig) -> list[float]:
    """R over the steps of an episode, by ``reward.credit``. PluginError if there is not one share for each step."""
    shares = [float(share) for share in CREDITS.get(settings.credit)(reward, steps, settings)]
    if len(shares) != len(steps):
        raise PluginError(
            f"credit assignment {settings.credit} gives {len(shares)} shares for {len(steps)} steps",
            hint="correct the plug-in, then resume the run",
        )
    return shares


def final_decay(reward: float, steps: Sequence[Step], settings: RewardConfig) -> list[float]:
    """The credit assignment of the method: a part for the last step, the rest decaying backwards."""
    return distribute_reward(reward, len(steps), settings)


def distribute_reward(reward: float, steps: int, config: RewardConfig) -> list[float]:
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


def process_reward(chosen: set[Action], execution: ExecutorResult, steps: int, config: RewardConfig) -> float:
    """Whether the executor did what the chosen skills are for.

    ``chosen`` (S) holds the action types of the chosen skills, D those of the successful actions; q and f are the
    configured totals divided by the number of steps T. All actions failed: -f. No action at all: 0. S = D: q.
    Overlap: q |S & D| / |S | D|. Otherwise: -q. A match on NOOP alone counts ``NOOP_DISCOUNT`` of that.
    """
    quality, failure = config.process_reward_scale / steps, config.process_penalty_scale / steps
    done = {action.action for action in execution.applied}
    if not done:
        return -failure if execution.attempted or execution.unreadable else 0.0
    common = chosen & done
    if not common:
        return -quality
    discount = NOOP_DISCOUNT if common == {Action.NOOP} else 1.0
    return quality * discount * len(common) / len(chosen | done)
