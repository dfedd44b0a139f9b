"""Vectors from a provider, over real HTTP."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import numpy as np
import pytest

from memskill_cli.config import ModelsConfig
from memskill_cli.errors import AuthError
from memskill_cli.llm.embeddings import embed_texts
from memskill_cli.testing.server import Fault, MockLLMServer

from ..factories import PRICES, key_ring, make_ledger

PRICED = ModelsConfig(prices=PRICES)
MODEL = "openai/text-embedding-3-small"
TEXTS = [f"text number {i}" for i in range(150)]


def test_vectors_come_in_the_order_of_the_texts() -> None:
    with MockLLMServer() as server:
        book, ring = make_ledger(), key_ring(["k1", "k2"])
        rows = embed_texts(MODEL, TEXTS, keys=ring, api_base=server.url, ledger=book, settings=PRICED)
        assert len(server.requests) == 3
        backwards = embed_texts(MODEL, TEXTS[::-1], keys=ring, api_base=server.url, ledger=book, settings=PRICED)
    assert rows.dtype == np.float32
    assert rows.shape[0] == 150
    np.testing.assert_allclose(rows, backwards[::-1], atol=1e-6)
    assert len(np.unique(rows, axis=0)) > 50
    assert book.usage().by_role == {"embedding": 6}
    assert book.spent > 0


def test_nothing_is_asked_for_no_texts() -> None:
    rows = embed_texts(MODEL, [], keys=key_ring(), api_base="", ledger=make_ledger())
    assert rows.shape == (0, 0)


def test_it_works_within_a_running_loop_and_with_a_limited_key() -> None:
    def faults(request: object) -> Fault | None:
        return Fault.rate_limit(600) if getattr(request, "key", "") == "k1" else None

    async def work(url: str) -> int:
        ring = key_ring(["k1", "k2"])
        return len(embed_texts(MODEL, TEXTS, keys=ring, api_base=url, ledger=make_ledger()))

    with MockLLMServer(faults=faults) as server:
        assert asyncio.run(work(server.url)) == 150


def test_refused_keys_are_told_once() -> None:
    notices: list[str] = []
    ring = key_ring(["wrong"])
    with MockLLMServer(keys=["right"]) as server:
        for _ in range(2):
            with pytest.raises(AuthError):
                embed_texts(
                    MODEL,
                    ["a"],
                    keys=ring,
                    api_base=server.url,
                    ledger=make_ledger(),
                    notice=notices.append,
                    settings=PRICED,
                )
    assert notices == ["key openai#1 was refused (401) and is disabled for this run"]


def test_many_calls_leave_no_connections_open() -> None:
    ring, book = key_ring(["k1"]), make_ledger()
    with MockLLMServer() as server:

        def call(times: int) -> int:
            for _ in range(times):
                embed_texts(MODEL, ["a"], keys=ring, api_base=server.url, ledger=book, settings=PRICED)
            gc.collect()  # what other tests have left behind must not be closed between two counts
            return len(list(Path("/proc/self/fd").iterdir()))

        few, many = call(20), call(40)
        assert many - few <= 4  # some connections are kept for later calls
