"""One evaluation's worth of surroundings for another memory system: a scripted server, an encoder, a folder."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from memskill_cli.config import load
from memskill_cli.evaluation.artifact_store import Shelf
from memskill_cli.evaluation.methods import get
from memskill_cli.evaluation.methods.base import Memory, Method, Site
from memskill_cli.evaluation.runner import Subject
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.client import Gateway
from memskill_cli.llm.keys import KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.encoder_pair import Spaces
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.rollout.episode import World
from memskill_cli.testing import rules
from memskill_cli.testing.replies import Script
from memskill_cli.testing.server import Request, ScriptedServer
from memskill_cli.types import Query, Retrieved, Span, Trace

T = TypeVar("T")
KEY = "sk-canary-5150"
Work = Callable[[Method], Awaitable[T]]


class SystemRig:
    """Runs a method against a server; the folder and the cache stay from one run to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.roles: dict[str, int] = {}
        self.spent = 0.0
        self.advanced = 0
        self._port = 0  # the same in every run: replies are cached by who gave them
        self.encoder: CachedEncoder

    def run(
        self, name: str, work: Work[T], reply: Script = rules.reply, *, model: str = "m", max_cost: float = 0.0
    ) -> T:
        """What ``work`` makes of the method called ``name``."""
        script = reply if callable(reply) else (lambda request: reply)
        with ScriptedServer(script, keys=[KEY], port=self._port) as server:
            self._port = int(server.url.split(":")[2].removesuffix("/v1"))
            try:
                return asyncio.run(self._run(name, work, server.url, model, max_cost))
            finally:
                self.requests = server.requests

    async def _run(self, name: str, work: Work[T], url: str, model: str, max_cost: float) -> T:
        settings = load(overrides={"models.retries": 0, "memory.top_k": 3})
        models = dataclasses.replace(settings.models, api_base=url, **dict.fromkeys(("executor", "answer"), model))
        models = dataclasses.replace(models, judge=model, designer=model)
        ledger = Ledger(None, scope="eval", max_cost=max_cost)
        self.encoder = load_encoder("hashing", cache_dir=None)
        with closing(ResponseCache(self.folder / "cache")) as cache, closing(self.encoder):
            keys = KeyRing.collect((KEY,), None, {})
            gateway = Gateway(models, settings.limits, keys=keys, ledger=ledger, cache=cache, notice=lambda text: None)
            world = World(gateway, Spaces(self.encoder, self.encoder), settings.memory, settings.reward, "locomo")
            subject = Subject.of(None, settings)
            shelf = Shelf(self.folder / "memory", "", "me", lambda text: None)
            method = get(name)(Site(world, settings, subject, shelf))
            method.check()
            await method.open()
            try:
                return await work(method)
            finally:
                await method.aclose()
                await gateway.aclose()
                self.roles, self.spent = dict(ledger.usage().by_role), ledger.spent

    def remember(
        self, name: str, spans: Sequence[Span], question: str, reply: Script = rules.reply, **more: Any
    ) -> tuple[int, list[Retrieved], dict[str, Any]]:
        """Read ``spans`` and ask: how many memories there are, what is recalled, what the method says of itself."""

        async def work(method: Method) -> tuple[int, list[Retrieved], dict[str, Any]]:
            memory = await self.read(method, spans)
            return memory.size, list(await memory.recall(asked(question))), {**method.facts(), **memory.counts}

        return self.run(name, work, reply, **more)

    def read(self, method: Method, spans: Sequence[Span]) -> Coroutine[Any, Any, Memory]:
        return method.remember(Trace(spans[0].trace_id, "locomo", "test", (), ()), spans, self._advance)

    def _advance(self) -> None:
        self.advanced += 1


def asked(question: str) -> Query:
    return Query("q", "t", "single-hop", question, ("?",))


@pytest.fixture
def rig(tmp_path: Path) -> SystemRig:
    return SystemRig(tmp_path)
