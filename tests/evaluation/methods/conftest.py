"""The objects that another memory system needs for an evaluation: a scripted server, an encoder, a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from memskill_cli.config import load
from memskill_cli.evaluation.artifact_store import EvalArtifactStore
from memskill_cli.evaluation.methods import get
from memskill_cli.evaluation.methods.base import Method, MethodContext, MethodMemory
from memskill_cli.evaluation.runner import EvaluatedPolicy
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.testing import rules
from memskill_cli.testing.replies import Script
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.types import Query, Retrieved, Span, Trace

from ...factories import llm_client, make_ledger, rollout_context

T = TypeVar("T")
KEY = "sk-canary-5150"
Work = Callable[[Method], Awaitable[T]]


class SystemRig:
    """Runs a method against a server. The folder and the cache are kept between runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.roles: dict[str, int] = {}
        self.spent = 0.0
        self.advanced = 0
        self._port = 0  # the same in every run, because the cache key has the name of the provider
        self.encoder: CachedEncoder

    def run(
        self, name: str, work: Work[T], reply: Script = rules.reply, *, model: str = "m", max_cost: float = 0.0
    ) -> T:
        """The result of ``work`` with the method called ``name``."""
        script = reply if callable(reply) else (lambda request: reply)
        with MockLLMServer(script, keys=[KEY], port=self._port) as server:
            self._port = int(server.url.split(":")[2].removesuffix("/v1"))
            try:
                return asyncio.run(self._run(name, work, server.url, model, max_cost))
            finally:
                self.requests = server.requests

    async def _run(self, name: str, work: Work[T], url: str, model: str, max_cost: float) -> T:
        settings = load(overrides={"models.retries": 0, "memory.num_memories": 3})
        ledger = make_ledger(scope="eval", max_cost=max_cost)
        self.encoder = load_encoder("hashing", cache_dir=None)
        with closing(ResponseCache(self.folder / "cache")) as cache, closing(self.encoder):
            llm = llm_client(url, model=model, base=settings.models, keys=[KEY], ledger=ledger, cache=cache)
            context = rollout_context(llm, self.encoder, settings)
            policy = EvaluatedPolicy.of(None, settings)
            shelf = EvalArtifactStore(self.folder / "memory", "", "me", lambda text: None)
            method = get(name)(MethodContext(context, settings, policy, shelf))
            method.check()
            await method.open()
            try:
                return await work(method)
            finally:
                await method.aclose()
                await llm.aclose()
                self.roles, self.spent = dict(ledger.usage().by_role), ledger.spent

    def remember(
        self, name: str, spans: Sequence[Span], question: str, reply: Script = rules.reply, **more: Any
    ) -> tuple[int, list[Retrieved], dict[str, Any]]:
        """Read ``spans`` and retrieve. Returns the number of memories, the retrieved ones, and the metadata."""

        async def work(method: Method) -> tuple[int, list[Retrieved], dict[str, Any]]:
            memory = await self.read(method, spans)
            return (
                memory.size,
                list(await memory.retrieve(asked(question))),
                {**method.summary_metadata(), **memory.counts},
            )

        return self.run(name, work, reply, **more)

    def read(self, method: Method, spans: Sequence[Span]) -> Coroutine[Any, Any, MethodMemory]:
        return method.build_memory(Trace(spans[0].trace_id, "locomo", "test", (), ()), spans, self._advance)

    def _advance(self) -> None:
        self.advanced += 1


def asked(question: str) -> Query:
    return Query("q", "t", "single-hop", question, ("?",))


@pytest.fixture
def rig(tmp_path: Path) -> SystemRig:
    return SystemRig(tmp_path)
