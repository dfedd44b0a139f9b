"""The two kinds of queries, questions and tasks, behind one protocol. Which one it is is chosen here, by dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from memskill_cli.config import EvalConfig, TrainConfig
from memskill_cli.datasets.registry import get
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.env_tasks import EnvTasks
from memskill_cli.rollout.question_answering import QuestionAnswering
from memskill_cli.types import Query, QueryResult, RetrieveFn, Span, Trace


class QueryKind(Protocol):
    """How the queries of a dataset are put to a memory."""

    judged: bool
    """Whether the judge may score a result."""

    def spans(self, trace: Trace, how: TrainConfig | EvalConfig) -> list[Span]:
        """The spans in which a trace is read."""
        ...

    def prefetch(self, context: RolloutContext, queries: Sequence[Query], after: int) -> None:
        """Have queries encoded while a memory of ``after`` spans is read, where their text is known by then."""
        ...

    async def answer(
        self,
        context: RolloutContext,
        retrieve: RetrieveFn,
        query: Query,
        *,
        judged: bool,
        reuse_cached_error: bool,
    ) -> QueryResult:
        """As :func:`answer_query`."""
        ...


KINDS: Mapping[str, QueryKind] = {"qa": QuestionAnswering(), "env": EnvTasks()}


def kind_of(dataset: str) -> QueryKind:
    """The kind of queries that the dataset of this name has. UsageError if there is no such dataset."""
    return KINDS[get(dataset).kind]


def prefetch_queries(context: RolloutContext, queries: Sequence[Query], after: int) -> None:
    """Have queries encoded while a memory of ``after`` spans is read."""
    kind_of(context.dataset).prefetch(context, queries, after)


async def answer_query(
    context: RolloutContext, retrieve: RetrieveFn, query: Query, *, judged: bool, reuse_cached_error: bool = True
) -> QueryResult:
    """One query answered and scored, if ``judged`` by the judge too. Raises ModelError when a call fails for good.

    What has no score has an ``error``; with ``reuse_cached_error`` False a reply that was unreadable before is asked
    for again. A task is played instead, and never judged.
    """
    kind = kind_of(context.dataset)
    return await kind.answer(context, retrieve, query, judged=judged, reuse_cached_error=reuse_cached_error)
