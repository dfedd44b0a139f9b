"""One training episode, and the policy that all episodes of an inner epoch share. It is fixed while they run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch

from memskill_cli.agent.controller import Controller, Exploration, select_skills
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.episode import run_episode
from memskill_cli.skills.bank import SkillBank
from memskill_cli.training.episode_sampler import EpisodeSpec
from memskill_cli.types import Episode


@dataclass(frozen=True)
class EpisodeCallbacks:
    """Functions that episodes call while they run."""

    on_span: Callable[[], None]
    """Called after each span."""


@dataclass(frozen=True)
class PolicySnapshot:
    """The controller and the skill bank of one inner epoch. ``skill_embeddings_SD``: the embeddings of its skills."""

    controller: Controller
    bank: SkillBank
    skill_embeddings_SD: torch.Tensor
    k: int
    exploration: Exploration

    @asynccontextmanager
    async def open(self, context: RolloutContext, callbacks: EpisodeCallbacks) -> AsyncIterator[OpenSnapshot]:
        yield context, self


OpenSnapshot = tuple[RolloutContext, PolicySnapshot]
"""A snapshot and the context of the process in which episodes run."""


async def run_training_episode(
    opened: OpenSnapshot, callbacks: EpisodeCallbacks, episode_spec: EpisodeSpec, seed: int
) -> Episode:
    """Run one episode. Its random draws depend only on ``seed``."""
    context, policy = opened
    select = partial(
        select_skills,
        policy.controller,
        skills_SD=policy.skill_embeddings_SD,
        k=policy.k,
        generator=torch.Generator().manual_seed(seed),
        exploration=policy.exploration,
    )
    spans, queries = episode_spec.spans, episode_spec.queries
    return await run_episode(context, spans, queries, policy.bank, select, callbacks.on_span)
