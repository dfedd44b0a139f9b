"""LangMem (LangChain's memory package) as a method: its store manager and its search.

There is usually one model call for each span: the manager searches for memories similar to the span, and one reply with
tool calls adds, changes and removes memories. LangMem sends tool calls that do not fit their schema back to the model.
Memories are in LangGraph's store in this process. Tracing is off, even if environment variables turn it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from memskill_cli.evaluation.methods.external import ExternalMethod, LLMBridge, MemoryRecord
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.types import MemoryItem, Query, Retrieved
from memskill_cli.utils import process

_NAMESPACE = ("memories",)  # each trace has its own store, so all stores can use the same namespace


class LangMem(ExternalMethod):
    """``--method langmem``."""

    package, module, extra = "langmem", "langmem", "langmem"

    async def open(self) -> None:
        await asyncio.to_thread(_load)

    def store(self, model: LLMBridge) -> LangMemStore:
        return LangMemStore(model, self.context.rollout.encoders.retrieval, self.context.settings.memory.num_memories)


class LangMemStore:
    """The memory of one trace, in its own LangGraph store."""

    def __init__(self, model: LLMBridge, encoder: CachedEncoder, top_k: int) -> None:
        from langmem import create_memory_store_manager

        from memskill_cli.evaluation.methods.langmem_chat import LLMClientChat

        self._top_k = top_k
        self._store = _counting_store(encoder)
        self._manager = create_memory_store_manager(LLMClientChat(model=model), namespace=_NAMESPACE, store=self._store)

    async def add(self, text: str, date: str) -> None:
        from langsmith import tracing_context

        with tracing_context(enabled=False):
            await self._manager.ainvoke({"messages": [{"role": "user", "content": text}]})

    async def retrieve(self, query: Query) -> list[Retrieved]:
        found = await self._store.asearch(_NAMESPACE, query=query.question, limit=self._top_k)
        return [Retrieved(MemoryItem(item.key, _text(item), ()), item.score or 0.0) for item in found]

    def items(self) -> list[MemoryRecord]:
        found = self._store.search(_NAMESPACE, limit=self._store.last)
        return [
            MemoryRecord(id=item.key, text=_text(item), date="") for item in sorted(found, key=lambda item: item.key)
        ]

    async def restore(self, items: Sequence[MemoryRecord]) -> None:
        for item in items:
            await self._store.put_as(item["id"], {"kind": "Memory", "content": {"content": item["text"]}})


def _counting_store(encoder: CachedEncoder) -> Any:
    """LangGraph's store in this process, with keys that are numbered in order.

    LangMem draws the key of a new memory at random and shows it to the model. With numbered keys the same replies give
    the same prompts, whose replies are in the cache.
    """
    from langgraph.store.memory import InMemoryStore

    from memskill_cli.evaluation.methods.langmem_chat import EncoderEmbeddings

    class CountingStore(InMemoryStore):
        last = 0

        async def aput(
            self, namespace: tuple[str, ...], key: str, value: dict[str, Any], *args: Any, **more: Any
        ) -> None:
            if self.get(namespace, key) is None:
                self.last += 1
                key = f"m{self.last:06d}"
            await super().aput(namespace, key, value, *args, **more)

        async def put_as(self, key: str, value: dict[str, Any]) -> None:
            self.last = max(self.last, int(key.removeprefix("m")))
            await super().aput(_NAMESPACE, key, value)

    # Embed the text only, as every other method does, and not the JSON around it.
    return CountingStore(index={"embed": EncoderEmbeddings(encoder), "dims": 0, "fields": ["content.content"]})


def _text(item: Any) -> str:
    return str(item.value["content"]["content"])


def _load() -> None:
    # This warning is for the developers of the packages and not for users of memskill.
    process.ignore_warnings("Importing Send from langgraph")
    import langmem  # noqa: F401

    import memskill_cli.evaluation.methods.langmem_chat  # noqa: F401

    for name in ("extraction", "trustcall", "langmem", "langgraph"):
        process.silence(name)  # they log the replies of models
