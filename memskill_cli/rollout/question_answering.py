"""Queries that are questions: how a trace is divided into spans, and how a question is answered and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from memskill_cli.agent.answerer import answer
from memskill_cli.config import EvalConfig, TrainConfig
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import RejectedPromptError, UnreadableReplyError
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.scoring.judge import judge
from memskill_cli.scoring.plugin_errors import plugin_errors
from memskill_cli.types import Query, QueryResult, RetrieveFn, Span, Trace

UNREADABLE = "unreadable"
"""Kind of error of a reply that ends before its reasoning ends. The model did reply, so the call has not failed."""

REFUSED = "refused"
"""Kind of error of a prompt that the model or its provider refused. Other prompts are not affected."""


class QuestionAnswering:
    """Queries that are questions. See :class:`~memskill_cli.rollout.kinds.QueryKind`."""

    judged = True

    def spans(self, trace: Trace, how: TrainConfig | EvalConfig) -> list[Span]:
        return split_spans(
            trace,
            how.span_mode,
            chunk_size=how.chunk_size,
            chunk_overlap=how.chunk_overlap,
            max_spans=how.max_spans,
        )

    def prefetch(self, context: RolloutContext, queries: Sequence[Query], after: int) -> None:
        context.encoders.retrieval.prefetch([query.question for query in queries], "query", after)

    async def answer(
        self,
        context: RolloutContext,
        retrieve: RetrieveFn,
        query: Query,
        *,
        judged: bool,
        reuse_cached_error: bool,
    ) -> QueryResult:
        """As ``answer_query`` in ``rollout/kinds.py``. A reply that ends inside its reasoning is an ``error``."""
        dataset, retrieved = get(context.dataset), await retrieve(query)
        try:
            prediction = await answer(
                context.llm, query, retrieved, dataset.answer_prompt, reuse_cached_error=reuse_cached_error
            )
        except UnreadableReplyError as error:
            return QueryResult(query, "", tuple(retrieved), None, error=f"{UNREADABLE}: {error.message}")
        except RejectedPromptError as error:
            return QueryResult(query, "", tuple(retrieved), None, error=f"{REFUSED}: {error.message}", refused=True)
        with plugin_errors(dataset, f"query {query.query_id}"):
            score = dataset.score(query, prediction)
        scored = QueryResult(query, prediction, tuple(retrieved), score)
        return await add_judge_score(context, scored) if judged else scored


async def add_judge_score(
    context: RolloutContext, answer: QueryResult, *, reuse_cached_error: bool = True
) -> QueryResult:
    """``answer`` with the judge's score.

    If the verdict cannot be read after the retry, the result has an ``error``, and ``judge`` stays None and does not
    become 0. If ``reuse_cached_error`` is False, a verdict that was unreadable before is requested again. Raises
    ModelError when the call fails after all retries.
    """
    try:
        verdict = await judge(
            context.llm,
            get(context.dataset),
            answer.query,
            answer.prediction,
            prompt=context.judge_prompt,
            reuse_cached_error=reuse_cached_error,
        )
        return dataclasses.replace(answer, judge=verdict)
    except UnreadableReplyError as error:
        return dataclasses.replace(answer, error=f"judge: {error.message}")
    except RejectedPromptError as error:
        return dataclasses.replace(answer, error=f"judge: {error.message}", refused=True)
