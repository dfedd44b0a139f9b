"""The two kinds of queries, questions and tasks, behind one protocol. The dataset decides which kind is used."""

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
    """How the queries of a dataset are answered with a memory."""

    judged: bool
    """Whether the judge can score a result."""

    def spans(self, trace: Trace, how: TrainConfig | EvalConfig) -> list[Span]:
        """The spans that a trace is divided into."""
        ...

    def prefetch(self, context: RolloutContext, queries: Sequence[Query], after: int) -> None:
        """Encode queries in the background while ``after`` spans are read, if their text is already known."""
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
        """See :func:`answer_query`."""
        ...


KINDS: Mapping[str, QueryKind] = {"qa": QuestionAnswering(), "env": EnvTasks()}


def kind_of(dataset: str) -> QueryKind:
    """The kind of queries of the dataset with this name. UsageError if there is no such dataset."""
    return KINDS[get(dataset).kind]


def prefetch_queries(context: RolloutContext, queries: Sequence[Query], after: int) -> None:
    """Encode queries in the background while ``after`` spans are read."""
    kind_of(context.dataset).prefetch(context, queries, after)


async def answer_query(
    context: RolloutContext, retrieve: RetrieveFn, query: Query, *, judged: bool, reuse_cached_error: bool = True
) -> QueryResult:
    """Answer and score one query; if ``judged``, the judge scores it too. A task is played instead, and never judged.

    A result without a score has an ``error``. If ``reuse_cached_error`` is False, a reply that was unreadable before is
    requested again. Raises ModelError when a model call fails after all retries.
    """
    kind = kind_of(context.dataset)
    return await kind.answer(context, retrieve, query, judged=judged, reuse_cached_error=reuse_cached_error)
