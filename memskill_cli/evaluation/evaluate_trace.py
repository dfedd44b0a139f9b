"""One trace of an evaluation: remembered by a method, asked, scored. The evaluation itself decides and writes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from memskill_cli.config import Config
from memskill_cli.datasets.spans import cut
from memskill_cli.envs.alfworld.trajectories import pack
from memskill_cli.errors import ModelError
from memskill_cli.evaluation import env_evaluation, methods
from memskill_cli.evaluation.artifact_store import Notes
from memskill_cli.evaluation.methods.base import RETRIEVAL, SPANS, Memory, Method, Site
from memskill_cli.evaluation.policy import Subject
from memskill_cli.evaluation.results import Row, row_of
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.rollout.episode import World, ask, expect, with_verdict
from memskill_cli.types import Answer, Query, Span, Trace

Answered = Callable[[Row, ModelError | None], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Desk:
    """Where traces report, and what is kept of them (a :class:`~memskill_cli.evaluation.artifact_store.Keeper`)."""

    owed: Callable[[Sequence[Query]], Awaitable[list[Query]]]
    """Which queries have no row yet: those of a trace that is read again, because its machine was lost, may have."""
    cut: Callable[[int], None]
    """A trace has so many spans."""
    advance: Callable[[], None]
    """One of them was read."""
    remembered: Callable[[str, int, Mapping[str, Any]], Awaitable[None]]
    """A trace's memory is there: its size, and what else its method counts."""
    answered: Answered
    """A query's row, and the error it failed with. Raises when there is no use in going on."""
    forgotten: Callable[[Sequence[Row], ModelError], Awaitable[None]]
    """A trace could not be remembered: its queries' rows, and why. Raises likewise."""
    read_bank: Callable[[str], Awaitable[StoredBank | None]]
    write_bank: Callable[[str, StoredBank], Awaitable[None]]
    read_notes: Callable[[str], Awaitable[Notes | None]]
    write_notes: Callable[[str, Notes], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Sittings:
    """What all traces of an evaluation share: the method by name, and what it may know."""

    method: str
    settings: Config
    subject: Subject

    @asynccontextmanager
    async def open(self, world: World, desk: Desk) -> AsyncIterator[Method]:
        method = methods.get(self.method)(Site(world, self.settings, self.subject, desk))
        method.check()  # wherever this is, it may lack a package
        await method.open()
        try:
            yield method
        finally:
            await method.aclose()


async def sit(method: Method, desk: Desk, trace: Trace, queries: Sequence[Query]) -> None:
    """Read one trace and ask ``queries`` of what the method kept, all at once."""
    world, queries = method.site.world, await desk.owed(queries)
    spans = await asyncio.to_thread(spans_of, trace, method)
    desk.cut(len(spans))
    if not method.ignores >= RETRIEVAL:
        expect(world, queries, len(spans))
    try:
        memory = await method.remember(trace, spans, desk.advance)
    except ModelError as error:
        answers = [Answer(query, "", (), None, error=f"memory: {error.message}") for query in queries]
        await desk.forgotten([_row(world, answer, None) for answer in answers], error)
        return
    await desk.remembered(trace.trace_id, memory.size, dict(memory.counts))
    asked = 0

    async def answered(row: Row, failure: ModelError | None) -> None:
        nonlocal asked
        asked += 1
        if asked == len(queries) and memory.keep is not None:
            await memory.keep()  # before the last row: a trace that has all of them is never read again
        await desk.answered(row, failure)

    await asyncio.gather(*(_query(method, memory, query, answered) for query in queries))


def spans_of(trace: Trace, method: Method) -> list[Span]:
    """The spans of a trace, none for a method that reads none."""
    how = method.site.settings.eval
    if method.ignores >= SPANS:
        return []
    if method.site.world.playground is not None:
        return pack(trace, how.chunk_size, how.max_spans)
    return cut(
        trace,
        how.span_mode,
        chunk_size=how.chunk_size,
        chunk_overlap=how.chunk_overlap,
        max_spans=how.max_spans,
    )


async def _query(method: Method, memory: Memory, query: Query, answered: Answered) -> None:
    world = method.site.world
    answer, what, failure = Answer(query, "", (), None), "answer", None
    try:
        answer, what = await ask(world, memory.recall, query, judged=False, settled=False), "judge"
        if method.site.settings.eval.judge and world.playground is None and not answer.error:
            answer = await with_verdict(world, answer, settled=False)  # a row with an error heals
    except ModelError as error:
        failure, answer = error, dataclasses.replace(answer, error=f"{what}: {error.message}")
    await answered(_row(world, answer, memory), failure)


def _row(world: World, answer: Answer, memory: Memory | None) -> Row:
    row = row_of(answer, memory)
    return row | env_evaluation.played_row(answer) if world.playground is not None else row
