"""A reward for memskill: the true answer must occur in the reply, and a long reply costs a part of the reward.

    memskill train --dataset locomo --plugin examples/custom_reward.py --set reward.kind=brief

Evaluations keep their own scores, F1 and the judge's.
"""

from __future__ import annotations

from memskill_cli.config import DesignerConfig
from memskill_cli.rollout.rewards import Reward, register_reward
from memskill_cli.types import QueryResult

LONG = 20
"""Words of a reply that get half of the reward."""


@register_reward("brief")
class Brief(Reward):
    """1 for a short reply that holds a true answer, less for a longer one, 0 for one that holds none."""

    def of(self, result: QueryResult) -> float | None:
        if result.error:
            return None  # no reply: in no mean, and never a 0
        reply = result.prediction.lower()
        if not any(truth.lower() in reply for truth in result.query.gold_answers):
            return 0.0
        return LONG / (LONG + len(reply.split()))

    def threshold(self, designer: DesignerConfig) -> float:
        """The designer is shown queries without a true answer, and those with a reply of more than 40 words."""
        return LONG / (LONG + 40)
