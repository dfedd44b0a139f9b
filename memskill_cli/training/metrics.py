"""One line of ``metrics.jsonl``: what an inner epoch's episodes and its PPO update came to."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from memskill_cli.records import Episode, Usage
from memskill_cli.skills.bank import SkillBank
from memskill_cli.training.ppo import PPOStats


class Effort(NamedTuple):
    """What an inner epoch took: the ledger's totals before and after it, and its time."""

    before: Usage
    after: Usage
    seconds: float


def row_of(
    outer: int, inner: int, bank: SkillBank, episodes: Sequence[Episode], stats: PPOStats, effort: Effort
) -> dict[str, Any]:
    """The line of inner epoch ``inner`` of ``outer``; ``bank`` is the one its episodes were read with."""
    steps = [step for episode in episodes for step in episode.steps]
    rewards = [episode.reward for episode in episodes]
    names = bank.names
    return {
        "outer": outer,
        "inner": inner,
        "stage": bank.stage,
        "episode_reward_mean": float(np.mean(rewards)),
        "episode_reward_std": float(np.std(rewards)),
        "process_reward_mean": float(np.mean([step.process_reward for step in steps])),
        **dataclasses.asdict(stats),
        "steps": len(steps),
        "skill_usage": dict(Counter(names[index] for step in steps for index in step.choice.skills)),
        "actions": dict(Counter(a.action.value for step in steps for a in step.execution.applied)),
        "rejected_actions": sum(sum(step.execution.rejected.values()) for step in steps),
        "rejected": dict(sum((Counter(step.execution.rejected) for step in steps), Counter())),
        "unreadable_replies": sum(step.execution.unreadable for step in steps),
        "memories_mean": float(np.mean([episode.memories for episode in episodes])),
        **_played(episodes),
        "llm_calls": effort.after.calls - effort.before.calls,
        "cached_calls": effort.after.cached_calls - effort.before.cached_calls,
        "cost_usd": round(effort.after.cost_usd - effort.before.cost_usd, 6),
        "seconds": round(effort.seconds, 3),
    }


def _played(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Of text games besides: tasks played, commands a task, replies that were no command, and games that broke down."""
    answers = [answer for episode in episodes for answer in episode.answers]
    played = [answer.played for answer in answers if answer.played is not None]
    if not played:
        return {}
    return {
        "tasks": len(played),
        "task_steps_mean": float(np.mean([len(game.moves) for game in played])),
        "invalid_commands": sum(game.invalid for game in played),
        "broken_games": len(answers) - len(played),
    }
