"""What all episodes of an inner epoch share, and one of them: a lesson read, asked and rewarded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from memskill_cli.agent.controller import Controller, Exploration, choose
from memskill_cli.rollout.episode import World, run_episode
from memskill_cli.skills.bank import SkillBank
from memskill_cli.training.episode_sampler import Lesson
from memskill_cli.types import Episode


@dataclass(frozen=True)
class Desk:
    """Where episodes report."""

    span: Callable[[], None]
    """One more span was read."""


@dataclass(frozen=True)
class Standing:
    """The controller and the skill bank as they stand during one inner epoch. ``skills_SD``: its skills' embeddings."""

    controller: Controller
    bank: SkillBank
    skills_SD: torch.Tensor
    k: int
    exploration: Exploration

    @asynccontextmanager
    async def open(self, world: World, desk: Desk) -> AsyncIterator[Classroom]:
        yield Classroom(world, self)


class Classroom(NamedTuple):
    """Where lessons are read."""

    world: World
    standing: Standing


async def attend(where: Classroom, desk: Desk, lesson: Lesson, seed: int) -> Episode:
    """One episode. ``seed`` is all that is random in it."""
    now = where.standing
    pick = partial(
        choose,
        now.controller,
        skills_SD=now.skills_SD,
        k=now.k,
        generator=torch.Generator().manual_seed(seed),
        exploration=now.exploration,
    )
    return await run_episode(where.world, lesson.spans, lesson.queries, now.bank, pick, desk.span)
