"""What all episodes of an inner epoch share, and one of them: a lesson read, asked and rewarded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from memskill_cli.agent.controller import Controller, Exploration, select_skills
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.episode import run_episode
from memskill_cli.skills.bank import SkillBank
from memskill_cli.training.episode_sampler import EpisodeSpec
from memskill_cli.types import Episode


@dataclass(frozen=True)
class EpisodeCallbacks:
    """Where episodes report."""

    on_span: Callable[[], None]
    """One more span was read."""


@dataclass(frozen=True)
class PolicySnapshot:
    """The controller and the skill bank as they stand during one inner epoch. ``skills_SD``: its skills' embeddings."""

    controller: Controller
    bank: SkillBank
    skill_embeddings_SD: torch.Tensor
    k: int
    exploration: Exploration

    @asynccontextmanager
    async def open(self, context: RolloutContext, callbacks: EpisodeCallbacks) -> AsyncIterator[Classroom]:
        yield Classroom(context, self)


class Classroom(NamedTuple):
    """Where lessons are read."""

    context: RolloutContext
    standing: PolicySnapshot


async def run_training_episode(
    where: Classroom, callbacks: EpisodeCallbacks, episode_spec: EpisodeSpec, seed: int
) -> Episode:
    """One episode. ``seed`` is all that is random in it."""
    now = where.standing
    pick = partial(
        select_skills,
        now.controller,
        skills_SD=now.skill_embeddings_SD,
        k=now.k,
        generator=torch.Generator().manual_seed(seed),
        exploration=now.exploration,
    )
    return await run_episode(where.context, episode_spec.spans, episode_spec.queries, now.bank, pick, callbacks.on_span)
