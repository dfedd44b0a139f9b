"""The credit assignment ``evidence``: the score of a query goes to the steps whose memories were retrieved for it.

The paper gives most of the episode reward to the last step, whatever was asked. Here each of the n scored queries has
the part s_q / n of R. It is divided evenly among the steps that wrote the memories retrieved for the query. A query for
which no written memory was retrieved gives its part by the paper's spread. So the shares sum to R.

Sources (``memory.sources``) give no credit: every policy keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memskill_cli.config import RewardConfig
from memskill_cli.rollout.rewards import QueryCredit, ScoredQuery, distribute_reward
from memskill_cli.types import Step


class EvidenceCredit(QueryCredit):
    """See the module."""

    def shares(
        self, reward: float, steps: Sequence[Step], queries: Sequence[ScoredQuery], settings: RewardConfig
    ) -> Sequence[float]:
        shares_T = np.zeros(len(steps))
        for query in queries:
            part = query.score / len(queries)
            if query.writers:
                shares_T[sorted(query.writers)] += part / len(query.writers)
            else:
                shares_T += distribute_reward(part, len(steps), settings)
        return [float(share) for share in shares_T]
