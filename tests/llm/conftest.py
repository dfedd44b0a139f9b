"""A gateway in front of a scripted server, taken down after the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import LimitsConfig
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.client import LLMClient, Message
from memskill_cli.llm.keys import KeyRing

from ..factories import key_ring, llm_client, make_ledger

MODEL = "openai/gpt-4o-mini"


def question(text: str = "What is new?") -> list[Message]:
    return [{"role": "user", "content": text}]


class Bench:
    """A gateway's parts, and what it told the user. ``run`` opens one for the life of one event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notices: list[str] = []
        self.ledger_file = folder / "usage.jsonl"
        self.scope, self.owner = "test", "run of today"

    def run(
        self,
        url: str,
        work: Callable[[LLMClient], Awaitable[Any]],
        *,
        keys: Sequence[str] = ("key-one", "key-two", "key-three"),
        keys_file: Path | None = None,
        ring: KeyRing | None = None,
        model: str = MODEL,
        cache: bool = False,
        max_cost: float = 0.0,
        concurrency: int = 16,
        **models: Any,
    ) -> Any:
        """What ``work`` returns; ``self.ledger`` is the ledger it left."""
        self.ledger = make_ledger(self.ledger_file, scope=self.scope, max_cost=max_cost, owner=self.owner)
        ring = ring or key_ring(keys, keys_file)
        store = ResponseCache(self.folder, notice=self.notices.append) if cache else None

        async def session() -> Any:
            llm = llm_client(
                url,
                model=model,
                limits=LimitsConfig(concurrency=concurrency),
                keys=ring,
                ledger=self.ledger,
                cache=store,
                notice=self.notices.append,
                **{"retries": 1, "timeout": 20.0, **models},
            )
            try:
                return await work(llm)
            finally:
                await llm.aclose()

        try:
            return asyncio.run(session())
        finally:
            if store:
                store.close()

    def ask(self, url: str, *texts: str, **options: Any) -> list[Any]:
        """Replies (or the errors raised) to questions asked at once."""

        async def work(llm: LLMClient) -> Any:
            asked = [llm.ask("answer", question(text)) for text in texts or ("What is new?",)]
            return await asyncio.gather(*asked, return_exceptions=True)

        return self.run(url, work, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
