"""A reward for memskill: the reply must contain a true answer, and a longer reply gets less.

    memskill train --dataset locomo --plugin examples/custom_reward.py --set reward.kind=brief

It is used in training only. Evaluations use F1 and the judge.
"""

from __future__ import annotations

from memskill_cli.config import DesignerConfig
from memskill_cli.rollout.rewards import Reward, register_reward
from memskill_cli.types import QueryResult

LONG = 20
"""A correct reply of this many words gets the reward 0.5."""


@register_reward("brief")
class Brief(Reward):
    """``LONG / (LONG + words)`` for a reply that contains a true answer, 0 for any other reply."""

    def of(self, result: QueryResult) -> float | None:
        if result.error:
            return None  # the query failed: it is left out of averages instead of counting as 0
        reply = result.prediction.lower()
        if not any(truth.lower() in reply for truth in result.query.gold_answers):
            return 0.0
        return LONG / (LONG + len(reply.split()))

    def threshold(self, designer: DesignerConfig) -> float:
        """Queries below this reward are shown to the designer: wrong replies, and replies of more than 40 words."""
        return LONG / (LONG + 40)
