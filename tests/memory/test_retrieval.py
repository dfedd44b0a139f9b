"""What is shown for a query: memories, then sources, within the number of items and of tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import MemoryConfig
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.memory.retrieval import index_sources, make_ranker, make_retriever
from memskill_cli.types import Provenance, Query, Retrieved, Source, Span
from memskill_cli.utils.tokens import count_tokens

SAID = "1:56 pm on 8 May, 2023"
TURNS = ["I got a cat yesterday.", "What is it called?", "Bento, and he sleeps.", "I paint boats.", "Nice boats."]
SOURCES = tuple(Source(f"s1:{i}", SAID, "Ivo" if i % 2 == 0 else "Mara", text) for i, text in enumerate(TURNS))
SPANS = [Span("t", 0, "all", SOURCES, SAID)]
QUERY = Query("q", "t", "", "What is Ivo's cat called?", ("Bento",))


@pytest.fixture
def encoders(tmp_path: Path) -> EncoderPair:
    encoder = load_encoder("hashing", cache_dir=tmp_path)
    return EncoderPair(encoder, encoder)


def bank_of(encoders: EncoderPair, *texts: str) -> MemoryBank:
    bank = MemoryBank("t")
    for text, vector in zip(texts, encoders.state.encode(texts) if texts else (), strict=True):
        bank.insert(text, vector, vector, Provenance("t", 0, ("insert",), 0, "8 May 2023", ("Ivo",)))
    return bank


def shown(encoders: EncoderPair, bank: MemoryBank, **settings: Any) -> list[Retrieved]:
    async def retrieve() -> list[Retrieved]:
        config = MemoryConfig(**settings)
        sources = await index_sources(SPANS, encoders, config)
        return list(await make_retriever(bank, encoders, config, sources)(QUERY))

    return asyncio.run(retrieve())


def test_memories_come_before_sources(encoders: EncoderPair) -> None:
    found = shown(encoders, bank_of(encoders, "Ivo has a cat called Bento"), num_memories=2)
    assert [one.item.item_id[:2] for one in found] == ["m0", "s1", "s1"]
    assert found[0].item.described == "[8 May 2023; Ivo] Ivo has a cat called Bento"


def test_a_source_is_shown_with_day_speaker_and_resolved_dates(encoders: EncoderPair) -> None:
    texts = {one.item.item_id: one.item.text for one in shown(encoders, bank_of(encoders))}
    assert texts["s1:0"] == "[8 May 2023] Ivo: I got a cat yesterday (7 May 2023)."
    raw = {one.item.item_id: one.item.text for one in shown(encoders, bank_of(encoders), resolve_dates=False)}
    assert raw["s1:0"] == "[8 May 2023] Ivo: I got a cat yesterday."


def test_without_sources_only_memories_are_shown(encoders: EncoderPair) -> None:
    bank = bank_of(encoders, "Ivo has a cat", "Mara paints")
    assert {one.item.item_id for one in shown(encoders, bank, sources=False)} == {"m000001", "m000002"}


@pytest.mark.parametrize("tokens", [1, 30, 60, 90, 1000])
def test_all_that_is_shown_fits_the_tokens_and_one_more_would_not(encoders: EncoderPair, tokens: int) -> None:
    bank = bank_of(encoders, *(f"Ivo has a cat called Bento {i}" for i in range(6)))
    size = {one.item.item_id: count_tokens(one.item.described) + 4 for one in shown(encoders, bank, context_tokens=0)}
    everything = [one.item.item_id for one in shown(encoders, bank, context_tokens=0)]
    found = [one.item.item_id for one in shown(encoders, bank, context_tokens=tokens)]
    assert sum(size[name] for name in found) <= tokens
    memories = [name for name in found if name.startswith("m")]
    assert sum(size[name] for name in memories) <= 0.4 * tokens
    assert memories == everything[: len(memories)]
    sources = [name for name in everything if name.startswith("s")]
    kept = [name for name in found if name.startswith("s")]
    assert kept == sources[: len(kept)]
    if len(kept) < len(sources):
        assert sum(size[name] for name in found) + size[sources[len(kept)]] > tokens


def test_no_token_limit_shows_the_number_of_both(encoders: EncoderPair) -> None:
    bank = bank_of(encoders, *(f"fact {i}" for i in range(5)))
    found = [one.item.item_id[0] for one in shown(encoders, bank, context_tokens=0, num_memories=3)]
    assert found == ["m", "m", "m", "s", "s", "s"]


def test_what_is_ranked_does_not_depend_on_what_fits(encoders: EncoderPair) -> None:
    async def rank() -> list[str]:
        config = MemoryConfig(context_tokens=1, num_memories=1)
        sources = await index_sources(SPANS, encoders, config)
        found = await make_ranker(bank_of(encoders, "a fact"), encoders, config, sources, 20)(QUERY)
        return [one.item.item_id for one in found]

    assert sorted(asyncio.run(rank())) == [source.ref for source in SOURCES]


@pytest.mark.parametrize(("share", "memories"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_memories_take_at_most_their_share_of_the_tokens(encoders: EncoderPair, share: float, memories: int) -> None:
    found = shown(encoders, bank_of(encoders, "Ivo has a cat", "Ivo has a boat"), context_tokens=48, memory_share=share)
    assert sum(one.item.item_id.startswith("m") for one in found) == memories
