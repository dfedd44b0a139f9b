"""One line of ``metrics.jsonl``: what an inner epoch's episodes and its PPO update came to."""

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

_BILL = ("prompt_tokens", "completion_tokens", "cost_usd")
_DIGITS = 10
"""Decimals of a dollar: sums of prices per token come out the same in any order."""


class EpochUsage(NamedTuple):
    """What an inner epoch used: the ledger's totals before it (:func:`usage_baseline`) and after it, and wall time."""

    before: Usage
    after: Usage
    seconds: float


def usage_baseline(totals: Usage, rows: Sequence[Mapping[str, Any]]) -> Usage:
    """The ledger's ``totals`` as an inner epoch begins, with tokens and money no more than its lines so far account
    for: what an attempt that was interrupted has paid for belongs to the next line, and all lines sum up to the bill.

    Calls are those of the attempt that completes the inner epoch; replies paid for by an earlier one count as cached.
    """
    billed = {name: sum(row.get(name, 0) for row in rows) for name in _BILL}
    return dataclasses.replace(totals, **{name: min(billed[name], getattr(totals, name)) for name in _BILL})


def metrics_row(
    outer: int, inner: int, bank: SkillBank, episodes: Sequence[Episode], stats: PPOStats, effort: EpochUsage
) -> dict[str, Any]:
    """The line of inner epoch ``inner`` of ``outer``; ``bank`` is the one its episodes were read with."""
    steps = [step for episode in episodes for step in episode.steps]
    rewards = [episode.reward for episode in episodes]
    names = bank.names
    return {
        "outer": outer,
        "inner": inner,
        "stage": bank.stage,
        "episode_reward_mean": math.fsum(rewards) / len(rewards),  # exact, so that equal stages are equal
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
        "unscored_queries": sum(bool(answer.error) for episode in episodes for answer in episode.results),
        "memories_mean": float(np.mean([episode.memories for episode in episodes])),
        **_played(episodes),
        "llm_calls": effort.after.calls - effort.before.calls,
        "cached_calls": effort.after.cached_calls - effort.before.cached_calls,
        **{name: round(getattr(effort.after, name) - getattr(effort.before, name), _DIGITS) for name in _BILL},
        "seconds": round(effort.seconds, 3),
    }


def epoch_index(row: Mapping[str, Any], inner_epochs: int) -> int | None:
    """Which inner epoch of the run a line is of, from 0; None if it says nothing of the kind."""
    outer, inner = row.get("outer"), row.get("inner")
    return outer * inner_epochs + inner if isinstance(outer, int) and isinstance(inner, int) else None


def _played(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Of text games besides: tasks played, commands a task, replies that were no command, and games that broke down."""
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
