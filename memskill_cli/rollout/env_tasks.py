"""Queries that are tasks in a text environment: memory is built from expert trajectories, then each task is played."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from memskill_cli.agent.env_runner import EnvRunner, play_episode, summarise_episode
from memskill_cli.config import EvalConfig, TrainConfig
from memskill_cli.envs.trajectories import pack_trajectories
from memskill_cli.errors import GameError, RejectedPromptError
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.types import Query, QueryResult, Retrieved, RetrieveFn, Span, Trace


class EnvTasks:
    """Queries that are tasks. See :class:`~memskill_cli.rollout.kinds.QueryKind`."""

    judged = False

    def spans(self, trace: Trace, how: TrainConfig | EvalConfig) -> list[Span]:
        """Spans of whole trajectories, each with as many trajectories as fit."""
        return pack_trajectories(trace, how.chunk_size, how.max_spans)

    def prefetch(self, context: RolloutContext, queries: Sequence[Query], after: int) -> None:
        """Does nothing: the text to retrieve with may be known only after the task has started."""

    async def answer(
        self,
        context: RolloutContext,
        retrieve: RetrieveFn,
        query: Query,
        *,
        judged: bool,
        reuse_cached_error: bool,
    ) -> QueryResult:
        """See :func:`run_env_task`. A task is never judged, and an unreadable command is not requested again."""
        assert context.env_runner is not None  # set in every context that plays tasks
        return await run_env_task(context, context.env_runner, retrieve, query)


async def run_env_task(context: RolloutContext, where: EnvRunner, retrieve: RetrieveFn, task: Query) -> QueryResult:
    """Plays one task from its start. The score is 1 for success and 0 otherwise.

    If the game fails, the result has an ``error`` and no score. Raises ModelError when a model call fails after all
    retries.
    """
    retrieved: Sequence[Retrieved] = ()
    try:
        async with where.pool.open_task(task.query_id) as game:
            seen = game.observation.text
            asked = task if where.config.retrieval_query == "goal" else dataclasses.replace(task, question=seen)
            retrieved = await retrieve(asked)
            played = await play_episode(
                context.llm, game, task.question, retrieved, where.config, max_chars=where.max_chars
            )
    except GameError as error:
        return QueryResult(task, "", tuple(retrieved), None, error=f"game: {error.message}")
    except RejectedPromptError as error:
        return QueryResult(task, "", tuple(retrieved), None, error=f"refused: {error.message}", refused=True)
    return QueryResult(task, summarise_episode(played), tuple(retrieved), float(played.won), trajectory=played)
