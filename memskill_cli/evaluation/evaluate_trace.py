"""One trace of an evaluation: remembered by a method, asked, scored. The evaluation itself decides and writes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from memskill_cli.config import Config
from memskill_cli.errors import ModelError
from memskill_cli.evaluation import kinds, methods
from memskill_cli.evaluation.artifact_store import SerializedMemory
from memskill_cli.evaluation.methods.base import RETRIEVAL, SPANS, Method, MethodContext, MethodMemory
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.results import Row, row_of
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.kinds import answer_query, kind_of, prefetch_queries
from memskill_cli.rollout.question_answering import add_judge_score
from memskill_cli.types import Query, QueryResult, Span, Trace

OnResult = Callable[[Row, ModelError | None], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class TraceCallbacks:
    """What the evaluation of a trace reports, and the cache of its memory
    (a :class:`~memskill_cli.evaluation.artifact_store.MemoryCache`)."""

    pending: Callable[[Sequence[Query]], Awaitable[list[Query]]]
    """Which queries have no row yet: those of a trace that is read again, because its machine was lost, may have."""
    on_spans: Callable[[int], None]
    """A trace has so many spans."""
    on_span: Callable[[], None]
    """One of them was read."""
    on_memory: Callable[[str, int, Mapping[str, Any]], Awaitable[None]]
    """A trace's memory is there: its size, and what else its method counts."""
    on_result: OnResult
    """A query's row, and the error it failed with. Raises when there is no use in going on."""
    on_memory_failed: Callable[[Sequence[Row], ModelError], Awaitable[None]]
    """A trace could not be remembered: its queries' rows, and why. Raises likewise."""
    read_bank: Callable[[str], Awaitable[StoredBank | None]]
    write_bank: Callable[[str, StoredBank], Awaitable[None]]
    read_notes: Callable[[str], Awaitable[SerializedMemory | None]]
    write_notes: Callable[[str, SerializedMemory], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class EvalWorkerSpec:
    """What all traces of an evaluation share: the method by name, and what it may know."""

    method: str
    settings: Config
    policy: EvaluatedPolicy

    @asynccontextmanager
    async def open(self, context: RolloutContext, callbacks: TraceCallbacks) -> AsyncIterator[Method]:
        method = methods.get(self.method)(MethodContext(context, self.settings, self.policy, callbacks))
        method.check()  # wherever this is, it may lack a package
        await method.open()
        try:
            yield method
        finally:
            await method.aclose()


async def evaluate_trace(method: Method, callbacks: TraceCallbacks, trace: Trace, queries: Sequence[Query]) -> None:
    """Read one trace and ask ``queries`` of what the method kept, all at once."""
    context, queries = method.context.rollout, await callbacks.pending(queries)
    spans = await asyncio.to_thread(spans_of, trace, method)
    callbacks.on_spans(len(spans))
    if not method.irrelevant_settings >= RETRIEVAL:
        prefetch_queries(context, queries, len(spans))
    try:
        memory = await method.build_memory(trace, spans, callbacks.on_span)
    except ModelError as error:
        answers = [QueryResult(query, "", (), None, error=f"memory: {error.message}") for query in queries]
        await callbacks.on_memory_failed([_row(context, answer, None) for answer in answers], error)
        return
    await callbacks.on_memory(trace.trace_id, memory.size, dict(memory.counts))
    asked = 0

    async def answered(row: Row, failure: ModelError | None) -> None:
        nonlocal asked
        asked += 1
        if asked == len(queries) and memory.persist is not None:
            await memory.persist()  # before the last row: a trace that has all of them is never read again
        await callbacks.on_result(row, failure)

    await asyncio.gather(*(_query(method, memory, query, answered) for query in queries))


def spans_of(trace: Trace, method: Method) -> list[Span]:
    """The spans of a trace, none for a method that reads none."""
    how = method.context.settings.eval
    if method.irrelevant_settings >= SPANS:
        return []
    return kind_of(method.context.rollout.dataset).spans(trace, how)


async def _query(method: Method, memory: MethodMemory, query: Query, answered: OnResult) -> None:
    context = method.context.rollout
    answer, what, failure = QueryResult(query, "", (), None), "answer", None
    try:
        answer, what = (
            await answer_query(context, memory.retrieve, query, judged=False, reuse_cached_error=False),
            "judge",
        )
        if method.context.settings.eval.judge and kind_of(context.dataset).judged and not answer.error:
            answer = await add_judge_score(context, answer, reuse_cached_error=False)  # a row with an error heals
    except ModelError as error:
        failure, answer = error, dataclasses.replace(answer, error=f"{what}: {error.message}")
    await answered(_row(context, answer, memory), failure)


def _row(context: RolloutContext, answer: QueryResult, memory: MethodMemory | None) -> Row:
    return row_of(answer, memory) | kinds.kind_of(context.dataset).row_fields(answer)
