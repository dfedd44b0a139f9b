"""Mem0 (arXiv 2504.19413) as a method: its package's own extraction, update decisions and search.

Two calls a span: which facts it holds, then what to do with each beside the nearest memories (ADD, UPDATE, DELETE,
NONE). All speakers share one store, and spans are read as one message. As in the authors' own evaluation on LoCoMo, a
memory is shown with the date of its session. "Today" in its prompt is that date too, not the day of the evaluation.
Vectors and history live in this process; nothing of it is sent or written anywhere.
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
_USER = "trace"  # each trace has a store of its own, so that one name does for all
_TODAY = re.compile(r"(Today's date is )[^\n]*")
_FACTS = 'root ::= "{\\"facts\\": [" (string (", " string){0,7})? "]}"\n' + JSON_TEXT
_CHANGES = (
    # Never an empty list, which a small model would rather give: it is asked for only when there are facts to place.
    'root ::= "{\\"memory\\": [" entry (", " entry){0,15} "]}"\n'
    'entry ::= "{\\"id\\": \\"" [0-9]{1,3} "\\", \\"text\\": " string ", \\"event\\": \\"" event "\\"}"\n'
    'event ::= "ADD" | "UPDATE" | "DELETE" | "NONE"\n'
) + JSON_TEXT


class _Library(NamedTuple):
    """What is used of the package: its module, the folder it has here, and its prompt that asks for facts."""

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
    """One trace in a Mem0 of its own."""

    def __init__(self, model: LLMBridge, encoder: CachedEncoder, dim: int, top_k: int) -> None:
        self._model, self._encoder, self._top_k = model, encoder, top_k
        self._memory = _new_memory(dim)
        self._memory.llm = _Llm(model)
        self._memory.embedding_model = _Embedder(encoder, model)
        self._names: dict[str, str] = {}  # Mem0 draws its ids at random; here they count up
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
        await self._encoder.aencode([query.question], "query")  # in good company; the search finds it in the cache
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
        """``work`` in a thread of its own, one at a time.

        Not in asyncio's: those are few, and were all of them waiting for the gateway, it could not write its replies
        to the cache.
        """
        async with self._busy:
            pool = ThreadPoolExecutor(1, thread_name_prefix="mem0")
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, work)
            finally:
                pool.shutdown(wait=False)


class _Llm:
    """What Mem0 calls a language model."""

    def __init__(self, model: LLMBridge) -> None:
        self._model = model

    def generate_response(self, messages: list[Message], response_format: Any = None, **_: Any) -> str:
        """The reply as JSON text; "" if it could not be read, which Mem0 takes for no facts and no changes."""
        asks_facts = messages[0]["role"] == "system"
        parse, grammar = (_facts, _FACTS) if asks_facts else (_changes, _CHANGES)
        value = self._model.ask_from_thread(messages, parse, grammar)
        return "" if value is None else json.dumps(value)


class _Embedder:
    """What Mem0 calls an embedder."""

    def __init__(self, encoder: CachedEncoder, model: LLMBridge) -> None:
        self._encoder, self._model = encoder, model

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        try:
            row = self._encoder.encode([text], "query" if memory_action == "search" else "context")[0]
        except Exception as error:  # Mem0 would leave out the memory, and go on
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
    """A Mem0 with a store in this process; its model and embedder are placeholders that never made a call."""
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
    """Mem0, imported so that it reports to nobody and keeps its folder out of the user's home.

    It would tell its makers of every call. Here the module that does so is never loaded; and if someone else has
    loaded it in this process, nothing is handed to it.
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
    """Load Mem0, and silence it for as long as it is used."""
    found = _library()
    process.set_attribute(found.main, "capture_event", lambda *args, **kwargs: None)
    process.set_attribute(found.main, "mem0_dir", found.home)
    process.silence("mem0")  # it logs whole prompts
    return found
