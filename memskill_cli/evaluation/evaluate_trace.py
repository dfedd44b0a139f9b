"""One trace of an evaluation: a method builds its memory, then its queries are answered and scored.

The caller decides what to evaluate and writes the results.
"""

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
from memskill_cli.rollout.step_rows import step_row
from memskill_cli.scoring.evidence import RECALL_AT
from memskill_cli.types import Query, QueryResult, Span, Trace

OnResult = Callable[[Row, ModelError | None], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class TraceCallbacks:
    """Functions that the evaluation of a trace calls, and the cache of its memory
    (a :class:`~memskill_cli.evaluation.artifact_store.MemoryCache`)."""

    pending: Callable[[Sequence[Query]], Awaitable[list[Query]]]
    """The queries without a row. If a trace is read again because its machine was lost, some may have a row."""
    on_spans: Callable[[int], None]
    """Takes the number of spans of a trace."""
    on_span: Callable[[], None]
    """Called after each span."""
    on_steps: Callable[[str, Sequence[Row]], Awaitable[None]]
    """Takes the trace id, and the lines of ``steps.jsonl`` of its spans. Not called if the memory was stored."""
    on_memory: Callable[[str, int, Mapping[str, Any]], Awaitable[None]]
    """Takes the trace id, the size of its memory, and the other counts of the method."""
    on_result: OnResult
    """Takes the row of a query and the error if it failed. Raises that error if the evaluation should stop."""
    on_memory_failed: Callable[[Sequence[Row], ModelError], Awaitable[None]]
    """Takes the rows of a trace whose memory could not be built, and the error. Raises like ``on_result``."""
    read_bank: Callable[[str], Awaitable[StoredBank | None]]
    write_bank: Callable[[str, StoredBank], Awaitable[None]]
    read_notes: Callable[[str], Awaitable[SerializedMemory | None]]
    write_notes: Callable[[str, SerializedMemory], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class EvalWorkerSpec:
    """The inputs that all traces of an evaluation share: the name of the method, the settings and the policy."""

    method: str
    settings: Config
    policy: EvaluatedPolicy

    @asynccontextmanager
    async def open(self, context: RolloutContext, callbacks: TraceCallbacks) -> AsyncIterator[Method]:
        method = methods.get(self.method)(MethodContext(context, self.settings, self.policy, callbacks))
        method.check()  # the machine of a worker may lack a package
        await method.open()
        try:
            yield method
        finally:
            await method.aclose()


async def evaluate_trace(method: Method, callbacks: TraceCallbacks, trace: Trace, queries: Sequence[Query]) -> None:
    """Build the memory of one trace, then answer all ``queries`` concurrently."""
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
    if memory.steps:
        read = [{"text": span.text, "sources": [source.ref for source in span.sources]} for span in spans]
        rows = [step_row(step) | of_span for step, of_span in zip(memory.steps, read, strict=True)]
        await callbacks.on_steps(trace.trace_id, rows)
    await callbacks.on_memory(trace.trace_id, memory.size, dict(memory.counts))
    asked = 0

    async def answered(row: Row, failure: ModelError | None) -> None:
        nonlocal asked
        asked += 1
        if asked == len(queries) and memory.persist is not None:
            await memory.persist()  # before the last row, because a trace with all its rows is never read again
        await callbacks.on_result(row, failure)

    await asyncio.gather(*(_query(method, memory, query, answered) for query in queries))


def spans_of(trace: Trace, method: Method) -> list[Span]:
    """The spans of a trace; [] for a method that uses no spans."""
    how = method.context.settings.eval
    if method.irrelevant_settings >= SPANS:
        return []
    return kind_of(method.context.rollout.dataset).spans(trace, how)


async def _query(method: Method, memory: MethodMemory, query: Query, answered: OnResult) -> None:
    context = method.context.rollout
    answer, what, failure = QueryResult(query, "", (), None), "answer", None
    try:
        # Cached errors are not reused, so that running an evaluation again can repair a row with an error.
        answer, what = (
            await answer_query(context, memory.retrieve, query, judged=False, reuse_cached_error=False),
            "judge",
        )
        if method.context.settings.eval.judge and kind_of(context.dataset).judged and not answer.error:
            answer = await add_judge_score(context, answer, reuse_cached_error=False)
    except ModelError as error:
        failure, answer = error, dataclasses.replace(answer, error=f"{what}: {error.message}")
    await answered(_row(context, answer, memory) | await _evidence(memory, answer), failure)


async def _evidence(memory: MethodMemory, answer: QueryResult) -> Row:
    """Evidence recall, and the stage at which the evidence is missing, if the data name evidence of the query."""
    gold, known = answer.query.evidence, memory.evidence
    if not gold or known is None or memory.rank is None or answer.error:
        return {}
    ranked = await memory.rank(answer.query)
    recall = {str(k): known.recall(gold, ranked, k) for k in RECALL_AT}
    return {"evidence": {"refs": list(gold), "recall": recall, "stage": known.failure(gold, answer.retrieved)}}


def _row(context: RolloutContext, answer: QueryResult, memory: MethodMemory | None) -> Row:
    return row_of(answer, memory) | kinds.kind_of(context.dataset).row_fields(answer)
