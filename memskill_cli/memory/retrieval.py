"""What is found for a query: memories by one of the retrievers, and beside them the sources that they do not replace.

A retriever ranks the memories of a bank: ``dense`` by cosine similarity, ``lexical`` by BM25, ``hybrid`` by the sum of
both, each standardised. With ``memory.sources`` the turns that were read are ranked too (:mod:`.sources`), and the best
of both are shown within ``memory.context_tokens``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from memskill_cli.config import MemoryConfig
from memskill_cli.config.extension_points import RETRIEVERS
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.lexical import RANKINGS, Ranking
from memskill_cli.memory.reranker import CANDIDATES, reranked
from memskill_cli.memory.sources import SourceIndex
from memskill_cli.types import MemoryItem, Query, Retrieved, RetrieveFn, Source, Span
from memskill_cli.utils.relative_dates import resolve_dates, short_date
from memskill_cli.utils.tokens import count_tokens

_LINE_TOKENS = 4
"""The number of an item in the prompt, and its line break."""

RetrieverFactory = Callable[[MemoryBank, EncoderPair, int], RetrieveFn]
"""(memory bank, its encoders, k) to a function that returns the k best memories of a query, best first."""

register_retriever = RETRIEVERS.named
"""``@register_retriever("name")`` on a :data:`RetrieverFactory` registers it for ``memory.retriever = "name"``."""


def make_retriever(
    bank: MemoryBank, encoders: EncoderPair, settings: MemoryConfig, sources: SourceIndex | None = None
) -> RetrieveFn:
    """The function that finds what is shown for a query: memories, best first, then ``sources``, best first."""
    memories = make_ranker(bank, encoders, settings, None, settings.num_memories)
    if sources is None:
        return memories
    rank_sources = make_ranker(bank, encoders, settings, sources, settings.num_memories)

    async def retrieve(query: Query) -> list[Retrieved]:
        found, said = list(await memories(query)), list(await rank_sources(query))
        if not settings.context_tokens:
            return found + said
        shown = fitting(found, int(settings.memory_share * settings.context_tokens))
        return shown + fitting(said, settings.context_tokens - sum(map(_tokens, shown)))

    return retrieve


def make_ranker(
    bank: MemoryBank, encoders: EncoderPair, settings: MemoryConfig, sources: SourceIndex | None, k: int
) -> RetrieveFn:
    """The function that ranks ``k`` for a query, whatever a prompt has room for: the sources, else the memories."""
    if settings.reranker:
        find = _first_ranker(bank, encoders, settings, sources, max(k, CANDIDATES))
        return reranked(find, settings.reranker, k)
    return _first_ranker(bank, encoders, settings, sources, k)


def _first_ranker(
    bank: MemoryBank, encoders: EncoderPair, settings: MemoryConfig, sources: SourceIndex | None, k: int
) -> RetrieveFn:
    if sources is None:
        make: RetrieverFactory = RETRIEVERS.get(settings.retriever)
        return make(bank, encoders, k)
    index = sources

    async def rank(query: Query) -> list[Retrieved]:
        vector = (await encoders.retrieval.aencode([query.question], "query"))[0]
        ranked = index.search(ranking_of(settings), query.question, vector, k)
        return [Retrieved(_as_item(source, settings), score) for source, score in ranked]

    return rank


async def index_sources(spans: Sequence[Span], encoders: EncoderPair, settings: MemoryConfig) -> SourceIndex | None:
    """The turns of the spans that were read, searchable; None if ``memory.sources`` is off."""
    if not settings.sources:
        return None
    index = SourceIndex(encoders.retrieval, language=settings.language)
    await index.add([source for span in spans for source in span.sources])
    return index


def ranking_of(settings: MemoryConfig) -> Ranking:
    """How sources, and memories for a span, are ranked: as ``memory.retriever`` says, a plug-in's like ``hybrid``."""
    return next((ranking for ranking in RANKINGS if ranking == settings.retriever), "hybrid")


def fitting(found: Sequence[Retrieved], tokens: int) -> list[Retrieved]:
    """The best that fit together into so many tokens: the first that does not fit ends the list."""
    sizes = itertools.accumulate(map(_tokens, found))
    return [one for one, size in zip(found, sizes, strict=True) if size <= tokens]


def _tokens(found: Retrieved) -> int:
    return count_tokens(found.item.described) + _LINE_TOKENS


def _as_item(source: Source, settings: MemoryConfig) -> MemoryItem:
    """A source as a prompt shows it: with its date and speaker, and with relative dates resolved."""
    text = resolve_dates(source.text, source.date) if settings.resolve_dates else source.text
    date = f"[{short_date(source.date)}] " if source.date else ""
    return MemoryItem(source.ref, f"{date}{source.speaker}: {text}" if source.speaker else f"{date}{text}", ())


def _searcher(ranking: Ranking) -> RetrieverFactory:
    def factory(bank: MemoryBank, encoders: EncoderPair, top_k: int) -> RetrieveFn:
        async def retrieve(query: Query) -> list[Retrieved]:
            vector = (await encoders.retrieval.aencode([query.question], "query"))[0]
            return bank.search(ranking, query.question, vector, top_k, "retrieval")

        return retrieve

    return factory


dense_retriever, lexical_retriever, hybrid_retriever = map(_searcher, RANKINGS)
"""The ``top_k`` memories of a bank for a question, in the retrieval space."""
