"""What memory is compared with: none at all, the whole history, and the history searched as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from memskill_cli.agent.answerer import answer_messages
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import UsageError
from memskill_cli.evaluation.methods.base import (
    CONTROLLER,
    EXECUTOR,
    RETRIEVAL,
    SPANS,
    WINDOW,
    Method,
    MethodContext,
    MethodMemory,
)
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.retrieval import fitting, make_ranker
from memskill_cli.memory.sources import SourceIndex
from memskill_cli.scoring.evidence import RECALL_AT, EvidenceMap
from memskill_cli.types import (
    Action,
    MemoryItem,
    MemoryVersion,
    Provenance,
    Query,
    Retrieved,
    RetrieveFn,
    Source,
    Span,
    Trace,
)
from memskill_cli.utils.tokens import count_tokens

MARGIN = 0.9
"""Part of a window that we fill: models count tokens in their own way, we in cl100k_base."""


class NoMemory(Method):
    """The question alone: what the model knows, or guesses, anyway."""

    irrelevant_settings = EXECUTOR | CONTROLLER | SPANS | RETRIEVAL | WINDOW

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        async def retrieve(query: Query) -> list[Retrieved]:
            return []

        return MethodMemory(retrieve, 0)


class FullContext(Method):
    """The whole history in the answer prompt, each session an item under its date, in order.

    What doesn't fit the answering model's window is cut line by line from the beginning, so that the newest stays (of
    documents: the last ones); ``cut`` of each row and of the summary say how much.
    """

    irrelevant_settings = EXECUTOR | CONTROLLER | SPANS | RETRIEVAL

    def check(self) -> None:
        if window_of(self.context) is None:
            raise UsageError(
                f"full-context must know how many tokens {self.context.settings.models.answer} takes, and nobody does",
                hint="--set eval.context_tokens=32768 (what your server allows, prompt and answer together)",
            )

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        history = await asyncio.to_thread(_history, trace)
        cuts: dict[str, int] = {}

        async def retrieve(query: Query) -> list[Retrieved]:
            room = _room(self.context, query)
            assert room is not None
            kept, cuts[query.query_id] = _newest(history, room)
            return [
                Retrieved(_item(trace.trace_id, i, session.label, text), 1.0) for i, (session, text) in enumerate(kept)
            ]

        return MethodMemory(retrieve, len(history), omit_text=True, cut=cuts)


class Rag(Method):
    """The spans themselves, as they were said: memory that nobody wrote.

    They are ranked by ``memory.retriever``: ``dense`` and ``lexical`` look at each span alone, ``hybrid`` ranks spans
    as :mod:`memskill_cli.memory.sources` ranks turns. Those that do not fit ``memory.context_tokens``, or the answering
    model's window where it is known, are left out (``cut``).
    """

    irrelevant_settings = EXECUTOR | CONTROLLER

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        settings = self.context.settings.memory
        search = await (self._hybrid(spans) if settings.retriever == "hybrid" else self._ranked(trace, spans))
        for _ in spans:
            advance()
        cuts: dict[str, int] = {}

        async def retrieve(query: Query) -> list[Retrieved]:
            found = list(await search(query))[: settings.num_memories]
            if settings.context_tokens:
                found = fitting(found, settings.context_tokens)
            kept, cuts[query.query_id] = _fitting(found, _room(self.context, query))
            return kept

        return MethodMemory(retrieve, len(spans), cut=cuts, evidence=EvidenceMap(spans, sources_kept=True), rank=search)

    @property
    def _most(self) -> int:
        return max(*RECALL_AT, self.context.settings.memory.num_memories)

    async def _ranked(self, trace: Trace, spans: Sequence[Span]) -> RetrieveFn:
        encoders, settings = self.context.rollout.encoders, self.context.settings.memory
        bank = MemoryBank(trace.trace_id, language=settings.language)
        vectors = await encoders.retrieval.aencode([span.text for span in spans])
        for span, vector in zip(spans, vectors, strict=True):
            bank.insert(span.text, vector, vector, Provenance(trace.trace_id, span.index, (), span.index))
        return make_ranker(bank, encoders, settings, None, self._most)

    async def _hybrid(self, spans: Sequence[Span]) -> RetrieveFn:
        encoders, settings = self.context.rollout.encoders, self.context.settings.memory
        index = SourceIndex(encoders.retrieval, language=settings.language)
        await index.add([_as_source(span) for span in spans])
        items = {
            _as_source(span).ref: _item(span.trace_id, span.index, f"span-{span.index}", span.text) for span in spans
        }

        async def search(query: Query) -> list[Retrieved]:
            vector = (await encoders.retrieval.aencode([query.question], "query"))[0]
            ranked = index.search("hybrid", query.question, vector, self._most)
            return [Retrieved(items[source.ref], score) for source, score in ranked]

        return search


def _as_source(span: Span) -> Source:
    """A span as a source; the span of one turn is that turn."""
    if len(span.sources) == 1 and "." not in span.sources[0].ref.rpartition(":")[2]:
        return span.sources[0]
    session = span.sources[0].session if span.sources else ""
    return Source(f"{session}:span-{span.index}", span.date, "", span.text)


def window_of(site: MethodContext) -> int | None:
    """The answering model's window in tokens: the setting, else what is known of the model, else None."""
    return site.settings.eval.context_tokens or site.rollout.llm.window("answer")


def _room(site: MethodContext, query: Query) -> int | None:
    """Tokens left for what is recalled, beside the rest of the prompt and the answer."""
    window = window_of(site)
    if window is None:
        return None
    prompt = answer_messages(query, (), get(site.rollout.dataset).answer_prompt)
    used = sum(count_tokens(message["content"]) for message in prompt)
    return max(0, int(MARGIN * window) - site.settings.models.answer_max_tokens - used)


def _fitting(found: list[Retrieved], room: int | None) -> tuple[list[Retrieved], int]:
    """The nearest that fit together, and how many tokens the others have."""
    if room is None:
        return found, 0
    kept: list[Retrieved] = []
    left_out = 0
    for one in found:
        tokens = count_tokens(one.item.text) + 3  # its number and line break
        if left_out or tokens > room:
            left_out += tokens
        else:
            kept.append(one)
            room -= tokens
    return kept, left_out


class _Session(NamedTuple):
    """One session of a history, with the cl100k_base tokens of each of its lines."""

    label: str
    dated: bool
    lines: tuple[str, ...]
    tokens: tuple[int, ...]


def _history(trace: Trace) -> list[_Session]:
    sessions = []
    for session, span in zip(trace.sessions, split_spans(trace, "full-session"), strict=True):
        lines = tuple(span.text.splitlines())
        sessions.append(
            _Session(session.label, bool(session.date), lines, tuple(count_tokens(line) + 1 for line in lines))
        )
    return sessions


def _newest(history: Sequence[_Session], room: int) -> tuple[list[tuple[_Session, str]], int]:
    """The last lines that fit, by session in order, and how many tokens were cut before them.

    A session that is cut keeps its date line.
    """
    kept: list[tuple[_Session, str]] = []
    total = sum(sum(session.tokens) for session in history)
    for session in reversed(history):
        fits = _tail(session.tokens, room)
        lines = session.lines[len(session.lines) - fits :]
        if 0 < fits < len(session.lines) and session.dated:
            lines = (session.lines[0], *lines)
        if lines:
            kept.insert(0, (session, "\n".join(lines)))
        taken = sum(session.tokens[len(session.tokens) - fits :])
        room, total = room - taken, total - taken
        if fits < len(session.lines):
            break
    return kept, total


def _tail(tokens: Sequence[int], room: int) -> int:
    """How many of the last lines fit into ``room``."""
    for count, size in enumerate(reversed(tokens)):
        if size > room:
            return count
        room -= size
    return len(tokens)


def _item(trace_id: str, index: int, label: str, text: str) -> MemoryItem:
    version = MemoryVersion(Action.INSERT, text, Provenance(trace_id, index, (), index))
    return MemoryItem(label, text, (version,))
