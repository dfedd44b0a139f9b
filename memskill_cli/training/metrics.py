"""One line of ``metrics.jsonl``: the metrics of the episodes and the policy update of one inner epoch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from memskill_cli.skills.bank import SkillBank
from memskill_cli.training.ppo import PPOStats
from memskill_cli.types import Episode, Usage
from memskill_cli.utils.rows import AMOUNT, COUNT, NUMBER, optional, table_of

LINE = {
    "outer": optional(COUNT),
    "inner": optional(COUNT),
    "stage": COUNT,
    "episode_reward_mean": NUMBER,
    "llm_calls": NUMBER,
    "cost_usd": AMOUNT,
    **{name: optional(AMOUNT) for name in ("prompt_tokens", "completion_tokens", "seconds", "steps", "cached_calls")},
    "skill_usage": optional(table_of(NUMBER)),
}
"""What is read of a line of ``metrics.jsonl``. A line without ``outer`` and ``inner`` is damaged and is left out."""
_BILL = ("prompt_tokens", "completion_tokens", "cost_usd")
_DIGITS = 10
"""Decimal places of dollar amounts, so that a sum of prices is the same in any order."""


class EpochUsage(NamedTuple):
    """Use of models in one inner epoch: totals before (:func:`usage_baseline`) and after it, wall time in seconds."""

    before: Usage
    after: Usage
    seconds: float


def usage_baseline(totals: Usage, rows: Sequence[Mapping[str, Any]]) -> Usage:
    """The ledger's ``totals`` at the start of an inner epoch, for the difference that its metrics line reports.

    Tokens and cost are at most the sum over the earlier lines ``rows``. So the tokens and cost of an interrupted
    attempt are counted in the next line, and the sum of all lines is the total cost. Calls are those of the attempt
    that completes the inner epoch; replies that an earlier attempt has paid for count as cached.
    """
    billed = {name: sum(row.get(name, 0) for row in rows) for name in _BILL}
    return dataclasses.replace(totals, **{name: min(billed[name], getattr(totals, name)) for name in _BILL})


def metrics_row(
    outer: int, inner: int, bank: SkillBank, episodes: Sequence[Episode], stats: PPOStats, effort: EpochUsage
) -> dict[str, Any]:
    """The line of inner epoch ``inner`` of outer epoch ``outer``. ``bank`` is the skill bank of its episodes."""
    steps = [step for episode in episodes for step in episode.steps]
    rewards = [episode.reward for episode in episodes if episode.scored]
    names = bank.names
    return {
        "outer": outer,
        "inner": inner,
        "stage": bank.stage,
        "episode_reward_mean": math.fsum(rewards) / len(rewards),  # exact: equal rewards give equal means
        "episode_reward_std": float(np.std(rewards)),
        "process_reward_mean": float(np.mean([step.process_reward for step in steps])),
        **dataclasses.asdict(stats),
        "steps": len(steps),
        "skill_usage": dict(Counter(names[index] for step in steps for index in step.selection.skills)),
        "actions": dict(Counter(a.action.value for step in steps for a in step.execution.applied)),
        "rejected_actions": sum(sum(step.execution.rejected.values()) for step in steps),
        "rejected": dict(sum((Counter(step.execution.rejected) for step in steps), Counter())),
        "unreadable_replies": sum(step.execution.unreadable for step in steps),
        "cut_replies": sum(step.execution.cut for step in steps),
        **skipped(episodes),
        "unscored_queries": sum(bool(answer.error) for episode in episodes for answer in episode.results),
        "memories_mean": float(np.mean([episode.memories for episode in episodes])),
        **_played(episodes),
        "llm_calls": effort.after.calls - effort.before.calls,
        "cached_calls": effort.after.cached_calls - effort.before.cached_calls,
        **{name: round(getattr(effort.after, name) - getattr(effort.before, name), _DIGITS) for name in _BILL},
        "seconds": round(effort.seconds, 3),
    }


def skipped(episodes: Sequence[Episode]) -> dict[str, int]:
    """The number of queries, and how many spans and queries were left out because a model refused their prompts."""
    answers = [answer for episode in episodes for answer in episode.results]
    return {
        "queries": len(answers),
        "skipped_spans": sum(bool(step.execution.refused) for episode in episodes for step in episode.steps),
        "skipped_queries": sum(answer.refused for answer in answers),
    }


def first_refusal(episodes: Sequence[Episode]) -> str:
    """Why the first span or query that was left out was refused; "" if there is none."""
    spans = (step.execution.refused for episode in episodes for step in episode.steps)
    queries = (answer.error for episode in episodes for answer in episode.results if answer.refused)
    return next(filter(None, [*spans, *queries]), "")


def skipped_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of spans and queries in the lines ``rows`` that were left out."""
    asked = sum(row.get("steps", 0) + row.get("queries", 0) for row in rows)
    skipped = sum(row.get("skipped_spans", 0) + row.get("skipped_queries", 0) for row in rows)
    return skipped / asked if asked else 0.0


def epoch_index(row: Mapping[str, Any], inner_epochs: int) -> int | None:
    """The number of a line's inner epoch in the run, from 0; None if the line does not have it."""
    outer, inner = row.get("outer"), row.get("inner")
    return outer * inner_epochs + inner if isinstance(outer, int) and isinstance(inner, int) else None


def _played(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Metrics of tasks: number played, mean steps, invalid commands, games that failed. Empty for questions."""
    answers = [answer for episode in episodes for answer in episode.results]
    played = [answer.trajectory for answer in answers if answer.trajectory is not None]
    if not played:
        return {}
    return {
        "tasks": len(played),
        "task_steps_mean": float(np.mean([len(game.steps) for game in played])),
        "invalid_commands": sum(game.invalid for game in played),
        "broken_games": len(answers) - len(played),
    }
