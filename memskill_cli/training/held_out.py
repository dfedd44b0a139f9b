"""Held-out questions: a sample of the val split that a skill bank and a controller answer, and the decision by them.

They are answered as in an evaluation: with the spans and the number of skills of ``eval``, and without sampling of
skills. gate.py says when.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from memskill_cli.agent.controller import Controller, select_skills
from memskill_cli.config import Config, MemoryConfig, for_evaluation
from memskill_cli.datasets.registry import get
from memskill_cli.distributed.base import Engine
from memskill_cli.errors import ModelError
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.episode import no_progress, read_and_answer
from memskill_cli.rollout.kinds import kind_of
from memskill_cli.rollout.rewards import reward_of, score_result
from memskill_cli.scoring.intervals import bootstrap_ci
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.stages import Gate, Scores, Stage
from memskill_cli.training.episode_sampler import EpisodeSpec
from memskill_cli.training.query_sampling import draw_queries
from memskill_cli.training.train_episode import EpisodeCallbacks
from memskill_cli.types import Trace


class HeldOut:
    """The held-out questions of a run. They are the same for all its stages."""

    def __init__(self, settings: Config, traces: Sequence[Trace]) -> None:
        """``traces`` are those of the val split. UsageError if their dataset is unknown."""
        self._settings, self._traces = for_evaluation(settings), traces

    @cached_property
    def episodes(self) -> list[EpisodeSpec]:
        """The spans and the questions of each trace that has a question."""
        how = self._settings.designer
        scored = [query for trace in self._traces for query in trace.queries if query.scored]
        chosen = draw_queries(scored, how.gate_queries or len(scored), (self._settings.seed, "gate"))
        ids, kind = {query.query_id for query in chosen}, kind_of(self._settings.dataset)
        asked = [(trace, [query for query in trace.queries if query.query_id in ids]) for trace in self._traces]
        return [EpisodeSpec(kind.spans(trace, self._settings.eval), queries) for trace, queries in asked if queries]

    def has_measured(self, stage: Stage) -> bool:
        """Whether ``stage`` has the scores of these questions."""
        ids = {query.query_id for episode in self.episodes for query in episode.queries}
        return stage.held_out is not None and stage.held_out.keys() == ids

    async def scores(
        self, engine: Engine, controller: Controller, bank: SkillBank, skill_embeddings_SD: torch.Tensor
    ) -> Scores:
        """Answer the questions with ``bank`` and ``controller``. Raises ModelError if a call fails after all retries,
        or if no answer has a score."""
        settings = self._settings
        policy = _GreedyPolicy(controller, bank, skill_embeddings_SD, settings.eval.num_skills, settings.memory)
        try:
            async with (
                engine.open_pool(policy, EpisodeCallbacks(no_progress)) as pool,
                asyncio.TaskGroup() as group,
            ):
                tasks = [group.create_task(pool.run(_answer, episode)) for episode in self.episodes]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        found = {query_id: score for task in tasks for query_id, score in task.result().items()}
        if all(score is None for score in found.values()):
            raise ModelError(
                f"none of {len(found)} held-out answers could be scored",
                hint="completed work is kept; run the same command with --resume to continue",
            )
        return found

    def decide(self, champion: Scores, challenger: Scores) -> Gate | None:
        """See :func:`decide`."""
        return decide(champion, challenger, self._settings)


def held_out_of(settings: Config, load: Callable[[], Sequence[Trace]], notice: Callable[[str], None]) -> HeldOut | None:
    """The held-out questions of a run, None if stage rewards judge its changes. ``load`` reads the val split.

    If ``designer.gate`` asks for held-out questions and there are none, ``notice`` is told so.
    """
    if not settings.train.evolve or settings.designer.gate == "rewards":
        return None
    if get(settings.dataset).kind != "qa":
        notice("designer.gate: the queries are tasks, not questions, so stage rewards judge the designer's changes")
        return None
    traces = load()
    if not any(query.scored for trace in traces for query in trace.queries):
        notice(f"designer.gate: {settings.dataset} has no val questions, so stage rewards judge the designer's changes")
        return None
    return HeldOut(settings, traces)


def decide(
    champion: Mapping[str, float | None], challenger: Mapping[str, float | None], settings: Config
) -> Gate | None:
    """Compare two banks by their scores on the same questions, by query id. None if they have no score in common:
    then stage rewards judge the change.

    The interval is a percentile bootstrap of the paired differences, seeded by the run's seed.
    """
    pairs = [(champion[name], challenger.get(name)) for name in sorted(champion)]
    both = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not both:
        return None
    gains = [after - before for before, after in both]
    difference = math.fsum(gains) / len(gains)
    low, high = bootstrap_ci(gains, resamples=settings.eval.bootstrap, seed=settings.seed)
    kept = difference > 0 and low > -settings.designer.gate_margin
    champions, challengers = (math.fsum(scores) / len(both) for scores in zip(*both, strict=True))
    return Gate(len(both), difference, (low, high), kept, champions, challengers)


@dataclass(frozen=True)
class _GreedyPolicy:
    """A controller with its bank, and the memory settings of an evaluation."""

    controller: Controller
    bank: SkillBank
    skill_embeddings_SD: torch.Tensor
    k: int
    memory: MemoryConfig

    @asynccontextmanager
    async def open(
        self, context: RolloutContext, callbacks: EpisodeCallbacks
    ) -> AsyncIterator[tuple[RolloutContext, _GreedyPolicy]]:
        yield replace(context, memory=self.memory), self


async def _answer(
    opened: tuple[RolloutContext, _GreedyPolicy], callbacks: EpisodeCallbacks, episode: EpisodeSpec
) -> Scores:
    """The scores of the questions of one trace."""
    context, policy = opened
    select = partial(select_skills, policy.controller, skills_SD=policy.skill_embeddings_SD, k=policy.k)
    read = await read_and_answer(
        context, episode.spans, episode.queries, policy.bank, select, callbacks.on_span, evaluating=True
    )
    reward = reward_of(context.reward)
    return {answer.query.query_id: score_result(reward, answer) for answer in read.answers}
