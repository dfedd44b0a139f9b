"""Rewards of queries, episodes and steps (section 5 of the method).

A *reward* scores one query; R, the episode reward, is the mean over the queries of an episode. A *credit assignment*
divides R among the steps of the episode: a function of R and the steps, or a :class:`QueryCredit`, which is also given
each query's score and the steps that wrote what was retrieved for it. A step's reward is its share plus its own process
reward. Rewards and credit assignments are extension points (docs/extending.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from memskill_cli.config import DesignerConfig, RewardConfig
from memskill_cli.config.extension_points import CREDITS, REWARDS
from memskill_cli.errors import ModelError, PluginError
from memskill_cli.scoring.evidence import spans_of
from memskill_cli.scoring.plugin_errors import plugin_errors
from memskill_cli.types import Action, ExecutorResult, QueryResult, Span, Step

NOOP_DISCOUNT = 0.2
"""Factor of the process reward when the only action that matches the chosen skills is NOOP."""


class Reward(ABC):
    """How the result of a query is scored during training."""

    needs_judge: ClassVar[bool] = False
    """Whether the judge model scores every answer, which costs one call each."""

    @abstractmethod
    def of(self, result: QueryResult) -> float | None:
        """The score of one result, from 0 to 1. None if it has no score (``result.error``); means leave it out."""

    def threshold(self, designer: DesignerConfig) -> float:
        """A query with a score below this value is a hard case."""
        return designer.f1_threshold

    @property
    def measure(self) -> Literal["f1", "judge"]:
        """The evaluation score by which ``memskill evolve --judge-on`` compares two skill banks."""
        return "judge" if self.needs_judge else "f1"


class F1Reward(Reward):
    """Token F1; for tasks, 1 for success and 0 otherwise."""

    def of(self, result: QueryResult) -> float | None:
        return result.f1


class JudgeReward(Reward):
    """The judge's score. Every query with a score below 1 is a hard case."""

    needs_judge = True

    def of(self, result: QueryResult) -> float | None:
        return result.judge

    def threshold(self, designer: DesignerConfig) -> float:
        return 1.0


Credit = Callable[[float, Sequence[Step], RewardConfig], Sequence[float]]
"""Takes the episode reward, the T steps of the episode and the settings; returns T shares."""


class ScoredQuery(NamedTuple):
    """A query of an episode that has a score."""

    result: QueryResult
    score: float
    """From 0 to 1. The mean over the queries of an episode is its reward R."""
    writers: frozenset[int] = frozenset()
    """The steps, counted from 0, that wrote the memories retrieved for it. A retrieved source has none."""


class QueryCredit(ABC):
    """A credit assignment that also uses the queries. The class, or an instance, is registered like a function."""

    @abstractmethod
    def shares(
        self, reward: float, steps: Sequence[Step], queries: Sequence[ScoredQuery], settings: RewardConfig
    ) -> Sequence[float]:
        """T shares of R = ``reward`` for the T ``steps``. ``queries`` are those with a score, at least one."""


register_reward = REWARDS.named
"""``@register_reward("name")`` over a :class:`Reward` makes it ``reward.kind = "name"``."""
register_credit = CREDITS.named
"""``@register_credit("name")`` over a :data:`Credit` or :class:`QueryCredit` makes it ``reward.credit = "name"``."""


def reward_of(settings: RewardConfig) -> Reward:
    """The reward that ``reward.kind`` names. UsageError if there is none."""
    part = REWARDS.get(settings.kind)
    reward: Reward = part() if isinstance(part, type) else part
    return reward


def score_result(reward: Reward, result: QueryResult) -> float | None:
    """The score of one answer, None if it has none. PluginError naming the query if the reward raises an exception."""
    with plugin_errors(reward, f"query {result.query.query_id}"):
        score = reward.of(result)
    if score is not None and not math.isfinite(score):
        raise PluginError(
            f"reward {type(reward).__name__} gives {score} for query {result.query.query_id}, which is no score",
            hint="correct the plug-in, then resume the run",
        )
    return score


def score_queries(answers: Sequence[QueryResult], reward: Reward, spans: Sequence[Span]) -> list[ScoredQuery]:
    """The answers that have a score, with the steps that wrote what was retrieved. Step t read ``spans[t]``.

    Raises ModelError if no answer has a score.
    """
    steps = {span.index: step for step, span in enumerate(spans)}
    known = [
        ScoredQuery(answer, score, _writers(answer, steps))
        for answer in answers
        if (score := score_result(reward, answer)) is not None
    ]
    if not known:
        raise ModelError(
            f"none of {len(answers)} answers could be scored: {answers[0].error if answers else 'no queries'}",
            hint="completed work is kept; run the same command with --resume to continue",
        )
    return known


def _writers(answer: QueryResult, steps: Mapping[int, int]) -> frozenset[int]:
    spans = set[int]().union(*(spans_of(found.item) for found in answer.retrieved))
    return frozenset(steps[index] for index in spans if index in steps)


def episode_reward(queries: Sequence[ScoredQuery]) -> float:
    """R: the mean score."""
    return float(np.mean([query.score for query in queries]))


def step_shares(
    reward: float, steps: Sequence[Step], settings: RewardConfig, queries: Sequence[ScoredQuery] = ()
) -> list[float]:
    """The share of R that each step gets, by ``reward.credit``.

    PluginError if the credit assignment raises an exception, or if it does not give one share for each step.
    """
    part = CREDITS.get(settings.credit)
    credit: Credit | QueryCredit = part() if isinstance(part, type) and issubclass(part, QueryCredit) else part
    with plugin_errors(credit, f"an episode of {len(steps)} steps"):
        if isinstance(credit, QueryCredit):
            given = credit.shares(reward, steps, queries, settings)
        else:
            given = credit(reward, steps, settings)
        shares = [float(share) for share in given]
    if len(shares) != len(steps) or not all(map(math.isfinite, shares)):
        kind = "shares" if len(shares) != len(steps) else "shares, not all of them finite,"
        raise PluginError(
            f"credit assignment {settings.credit} gives {len(shares)} {kind} for {len(steps)} steps",
            hint="correct the plug-in, then resume the run",
        )
    return shares


def final_decay(reward: float, steps: Sequence[Step], settings: RewardConfig) -> list[float]:
    """The credit assignment of the method. See :func:`distribute_reward`."""
    return distribute_reward(reward, len(steps), settings)


def distribute_reward(reward: float, steps: int, config: RewardConfig) -> list[float]:
    """R divided among the T = ``steps`` steps of an episode. The shares sum to R.

    The last step gets ``final_share`` of R. The rest is divided among all T steps with weights proportional to
    decay^(T-1-t), t = 0 .. T-1. If there is only one step, it gets all of R.
    """
    if steps == 1:
        return [reward]
    weights = config.decay ** np.arange(steps - 1, -1, -1)
    shares = (1 - config.final_share) * weights / weights.sum()
    shares[-1] += config.final_share
    return [float(share) * reward for share in shares]


def process_reward(chosen: set[Action], execution: ExecutorResult, steps: int, config: RewardConfig) -> float:
    """Reward of one step for actions of the types that the chosen skills are meant for.

    S = ``chosen``: the action types of the chosen skills. D: the types of the actions that were applied. q and f: the
    settings ``process_reward_scale`` and ``process_penalty_scale`` divided by the number of steps T.

    - All actions failed, or the reply was unreadable: -f.
    - No action: 0.
    - S and D have no type in common: -q.
    - Otherwise: q |S & D| / |S | D|, which is q for S = D. If NOOP is the only common type, times ``NOOP_DISCOUNT``.

    With ``memory.protect``, what was finally applied counts: an UPDATE that became an INSERT is an INSERT, a refused
    DELETE has failed, and an INSERT of what a memory says already is an INSERT.
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
