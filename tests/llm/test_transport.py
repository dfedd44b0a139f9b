"""The connections below litellm."""

from __future__ import annotations

import asyncio
from typing import Any

from memskill_cli.llm.client import LLMClient
from memskill_cli.testing.server import MockLLMServer

from .conftest import Bench, question


class Counting(MockLLMServer):
    """Counts the connections that are made to it."""

    connections = 0

    async def _serve(self, *both: Any) -> None:
        self.connections += 1
        await super()._serve(*both)


def test_connections_are_used_again(bench: Bench) -> None:
    """Each costs a handshake. One chain of calls needs one of them, however many calls were in flight before."""
    counts: list[int] = []

    async def work(llm: LLMClient) -> None:
        for text, width in (("chain", 1), ("storm", 12), ("chain", 1)):
            for i in range(12 // width):
                texts = [f"{text} {len(counts)} {i} {j}" for j in range(width)]
                await asyncio.gather(*(llm.ask("answer", question(text)) for text in texts))
            counts.append(server.connections)

    with Counting(latency=lambda request: 0.5 * request.text.startswith("storm")) as server:
        bench.run(server.url, work, keys=["key-one"])
        assert server.max_in_flight == 12
    assert counts == [1, 12, 12]
