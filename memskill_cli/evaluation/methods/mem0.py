"""Mem0 (arXiv 2504.19413) as a method: its package's own extraction, update decisions and search.

There are two model calls for each span: one extracts facts; the other decides what to do with each fact, given the
nearest memories (ADD, UPDATE, DELETE, NONE). All speakers share one store, and a span is read as one message. As in the
authors' evaluation on LoCoMo, a memory is shown with the date of its session. "Today" in Mem0's prompt is that date and
not the day of the evaluation. Vectors and history are in this process only and are not sent or written anywhere.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.evaluation.methods.external import JSON_TEXT, ExternalMethod, LLMBridge, MemoryRecord, read_object
from memskill_cli.llm.client import Message
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.types import MemoryItem, Query, Retrieved
from memskill_cli.utils import process

T = TypeVar("T")
_USER = "trace"  # each trace has its own store, so all stores can use the same user id
_TODAY = re.compile(r"(Today's date is )[^\n]*")
_FACTS = 'root ::= "{\\"facts\\": [" (string (", " string){0,7})? "]}"\n' + JSON_TEXT
_CHANGES = (
    # Never an empty list, which small models prefer: Mem0 asks only if there are facts to store.
    'root ::= "{\\"memory\\": [" entry (", " entry){0,15} "]}"\n'
    'entry ::= "{\\"id\\": \\"" [0-9]{1,3} "\\", \\"text\\": " string ", \\"event\\": \\"" event "\\"}"\n'
    'event ::= "ADD" | "UPDATE" | "DELETE" | "NONE"\n'
) + JSON_TEXT


class _Library(NamedTuple):
    """The parts of the package that are used: its module, its temporary folder, and its prompt for fact extraction."""

    main: Any
    home: str
    prompt: str


class Mem0(ExternalMethod):
    """``--method mem0``."""

    package, module, extra = "mem0ai", "mem0", "mem0"

    async def open(self) -> None:
        await asyncio.to_thread(_open_library)
        self._dim = (await self.context.rollout.encoders.retrieval.aencode(["memory"])).shape[1]

    def store(self, model: LLMBridge) -> Mem0Store:
        return Mem0Store(
            model, self.context.rollout.encoders.retrieval, self._dim, self.context.settings.memory.num_memories
        )


class Mem0Store:
    """The memory of one trace, in its own Mem0 instance."""

    def __init__(self, model: LLMBridge, encoder: CachedEncoder, dim: int, top_k: int) -> None:
        self._model, self._encoder, self._top_k = model, encoder, top_k
        self._memory = _new_memory(dim)
        self._memory.llm = _Llm(model)
        self._memory.embedding_model = _Embedder(encoder, model)
        self._names: dict[str, str] = {}  # Mem0's ids are random; these are numbered in order
        self._busy = asyncio.Lock()

    async def add(self, text: str, date: str) -> None:
        prompt = _TODAY.sub(lambda found: f"{found[1]}{date or 'not known'}.", _library().prompt)
        self._memory.config.custom_fact_extraction_prompt = prompt
        done = await self._run(
            lambda: self._memory.add(
                [{"role": "user", "content": text}], user_id=_USER, metadata={"date": date} if date else None
            )
        )
        for event in done["results"]:
            if event["event"] == "ADD":
                self._names[event["id"]] = f"m{len(self._names) + 1:06d}"

    async def retrieve(self, query: Query) -> list[Retrieved]:
        await self._encoder.aencode(
            [query.question], "query"
        )  # encoded together with other queries; the search below finds it in the cache
        found = await self._run(lambda: self._memory.search(query.question, user_id=_USER, limit=self._top_k))
        return [
            Retrieved(MemoryItem(self._names[row["id"]], _shown(row), ()), row["score"]) for row in found["results"]
        ]

    def items(self) -> list[MemoryRecord]:
        rows = self._memory.vector_store.list(filters={"user_id": _USER}, limit=len(self._names) + 1)[0]
        kept = [
            MemoryRecord(id=self._names[str(row.id)], text=row.payload["data"], date=row.payload.get("date", ""))
            for row in rows
        ]
        return sorted(kept, key=lambda item: item["id"])

    async def restore(self, items: Sequence[MemoryRecord]) -> None:
        if not items:
            return
        vectors = await self._encoder.aencode([item["text"] for item in items])
        ids = [str(uuid.uuid4()) for _ in items]
        payloads = [{"data": item["text"], "date": item["date"], "user_id": _USER} for item in items]
        await self._run(lambda: self._memory.vector_store.insert(vectors.tolist(), payloads, ids))
        self._names = {key: item["id"] for key, item in zip(ids, items, strict=True)}

    async def _run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a new thread, one call at a time.

        It does not use asyncio's thread pool: if all of its threads waited for the model client, the client would have
        no thread for writing replies to the cache.
        """
        async with self._busy:
            pool = ThreadPoolExecutor(1, thread_name_prefix="mem0")
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, work)
            finally:
                pool.shutdown(wait=False)


class _Llm:
    """The executor model with Mem0's interface of a language model."""

    def __init__(self, model: LLMBridge) -> None:
        self._model = model

    def generate_response(self, messages: list[Message], response_format: Any = None, **_: Any) -> str:
        """The reply as JSON text; "" if it could not be read, which Mem0 treats as no facts or no changes."""
        asks_facts = messages[0]["role"] == "system"
        parse, grammar = (_facts, _FACTS) if asks_facts else (_changes, _CHANGES)
        value = self._model.ask_from_thread(messages, parse, grammar)
        return "" if value is None else json.dumps(value)


class _Embedder:
    """The retrieval encoder with Mem0's interface of an embedder."""

    def __init__(self, encoder: CachedEncoder, model: LLMBridge) -> None:
        self._encoder, self._model = encoder, model

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        try:
            row = self._encoder.encode([text], "query" if memory_action == "search" else "context")[0]
        except Exception as error:  # Mem0 would drop the memory and continue
            self._model.fail(error)
            raise
        return [float(number) for number in row]


def _facts(text: str) -> dict[str, Any]:
    value = read_object(text, "facts")
    if not isinstance(value["facts"], list) or not all(isinstance(fact, str) for fact in value["facts"]):
        raise UnreadableReplyError('"facts" must be a list of texts')
    return {"facts": [fact for fact in value["facts"] if fact.strip()]}


def _changes(text: str) -> dict[str, Any]:
    value = read_object(text, "memory")
    if not isinstance(value["memory"], list) or not all(isinstance(entry, dict) for entry in value["memory"]):
        raise UnreadableReplyError('"memory" must be a list of objects')
    if not all(isinstance(entry.get("text"), str | None) for entry in value["memory"]):
        raise UnreadableReplyError('"text" must be a text')
    return value


def _shown(row: dict[str, Any]) -> str:
    date = (row.get("metadata") or {}).get("date")
    return f"{date}: {row['memory']}" if date else str(row["memory"])


def _new_memory(dim: int) -> Any:
    """A Mem0 instance with a store in this process. The model and the embedder of its settings are never called."""
    from qdrant_client import QdrantClient

    vectors = {"collection_name": "memories", "embedding_model_dims": dim, "client": QdrantClient(":memory:")}
    return _open_library().main.Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": vectors},
            "llm": {"provider": "lmstudio"},
            "embedder": {"provider": "lmstudio"},
            "history_db_path": ":memory:",
        }
    )


@functools.cache
def _library() -> _Library:
    """Import Mem0 without its telemetry and with a temporary folder in place of one in the user's home.

    Mem0 sends an event to its developers for every call. Here its telemetry module is replaced before it is loaded. If
    other code in this process has already loaded it, :func:`_open_library` makes sure that Mem0 does not call it.
    """
    home = tempfile.mkdtemp(prefix="memskill-mem0-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    silent: Any = ModuleType("mem0.memory.telemetry")
    silent.capture_event = silent.capture_client_event = lambda *args, **kwargs: None
    sys.modules.setdefault(silent.__name__, silent)
    before = os.environ.get("MEM0_DIR")
    os.environ["MEM0_DIR"] = home
    try:
        from mem0.configs.prompts import FACT_RETRIEVAL_PROMPT
        from mem0.memory import main
    finally:
        del os.environ["MEM0_DIR"]
        if before is not None:
            os.environ["MEM0_DIR"] = before
    return _Library(main, home, FACT_RETRIEVAL_PROMPT)


def _open_library() -> _Library:
    """Load Mem0, and turn off its telemetry and its log while it is used."""
    found = _library()
    process.set_attribute(found.main, "capture_event", lambda *args, **kwargs: None)
    process.set_attribute(found.main, "mem0_dir", found.home)
    process.silence("mem0")  # it logs whole prompts
    return found
