"""Methods that use another memory system, with its own pipeline, prompts and store.

Such a system reads the same spans with the same executor model and retrieval encoder as the other methods, and the
same answer prompt is used. The memories of a finished trace are stored as JSON, so that running the evaluation again
makes no model calls for it. A trace that was interrupted is read again, with model replies from the cache.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib import metadata, util
from typing import Any, ClassVar, Protocol, TypedDict, TypeVar

from memskill_cli.agent.reply_json import repair_json
from memskill_cli.errors import MemskillError, ModelError, UnreadableReplyError, UsageError
from memskill_cli.evaluation.artifact_store import SerializedMemory
from memskill_cli.evaluation.methods.base import CONTROLLER, WINDOW, Method, MethodMemory
from memskill_cli.llm.client import LLMClient, Message
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.types import Query, Retrieved, Span, Trace

T = TypeVar("T")
MAX_TOKENS = 2000
"""Token limit of the executor model's replies to another system; the default of Mem0."""
JSON_TEXT = r"""
string ::= "\"" char{1,200} "\""
char ::= [^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]
""".lstrip()
"""GBNF grammar of a short JSON string, for the embedded model. The limit stops a model that repeats itself."""
UNREADABLE = "unreadable_replies"
_DATE_LINE = re.compile(r"\[([^\]\n]+)\]\n")


class MemoryRecord(TypedDict):
    """One memory in its stored form. ``date`` is the date of its session, "" if the system does not store it."""

    id: str
    text: str
    date: str


class ExternalStore(Protocol):
    """The memory of one trace in another system."""

    async def add(self, text: str, date: str) -> None:
        """Read one span. ``text`` begins with a line that has the date, if there is one."""

    async def retrieve(self, query: Query) -> Sequence[Retrieved]: ...

    def items(self) -> list[MemoryRecord]:
        """All memories, oldest first."""

    async def restore(self, items: Sequence[MemoryRecord]) -> None:
        """Restore the memories that :meth:`items` returned, without a model call. The store must be empty."""


class LLMBridge:
    """Access to the executor model for a memory library. There is one for each trace, used within one event loop.

    The libraries catch exceptions of model calls and continue as if there were nothing to remember. So the first
    failure is stored: every later call raises it at once, and :meth:`check` raises it in the evaluation. ``unreadable``
    counts replies that could not be read after the retry; the library gets an empty reply instead.
    """

    def __init__(self, llm: LLMClient) -> None:
        self.unreadable = 0
        self._llm = llm
        self._loop = asyncio.get_running_loop()
        self._failure: Exception | None = None

    async def ask(self, messages: list[Message], parse: Callable[[str], T], grammar: str) -> T | None:
        """The parsed reply, or None if it could not be read."""
        self.check()
        try:
            reply = await self._llm.ask("executor", messages, parse=parse, grammar=grammar, max_tokens=MAX_TOKENS)
        except UnreadableReplyError:
            self.unreadable += 1
            return None
        except asyncio.CancelledError:
            self.stop()
            raise
        except Exception as error:
            self.fail(error)
            raise
        return reply.value

    def ask_from_thread(self, messages: list[Message], parse: Callable[[str], T], grammar: str) -> T | None:
        """As :meth:`ask`, for code in a thread other than that of the event loop."""
        self.check()
        return asyncio.run_coroutine_threadsafe(self.ask(messages, parse, grammar), self._loop).result()

    def stop(self) -> None:
        """Make all further calls fail, so that the library ends without another model call."""
        self.fail(ModelError("stopped while a trace was being read"))

    def fail(self, error: Exception) -> None:
        """Store the first failure, which the library might catch and ignore."""
        self._failure = self._failure or error

    def check(self) -> None:
        """Raise the stored failure, if there is one."""
        if self._failure is not None:
            raise self._failure


class ExternalMethod(Method):
    """A method that uses another memory system. A subclass names its package and makes its stores."""

    policy_dependency = "nothing"
    irrelevant_settings = (
        CONTROLLER
        | WINDOW
        | frozenset(
            {
                "models.executor_max_tokens",
                "memory.max_chars",
                "memory.max_actions",
                "memory.server",
                "memory.retriever",
            }
        )
    )
    package: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str]

    @abstractmethod
    def store(self, model: LLMBridge) -> ExternalStore:
        """An empty store of the system, which asks ``model``."""

    def check(self) -> None:
        if util.find_spec(self.module) is None:
            raise UsageError(
                f"{self.package} is not installed",
                hint=f'pip install "memskill[{self.extra}]"',
            )

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        model = LLMBridge(self.context.rollout.llm)
        store = self.store(model)
        kept = await self.context.cache.read_notes(trace.trace_id)
        if kept is not None and kept["system"] == self._system():  # ignore memories of another version of the system
            await store.restore(kept["memories"])
            for _ in spans:
                advance()
            return self._memory(store, kept)
        for span in spans:
            await self._read(store, model, span)
            advance()
        facts = {"system": self._system(), UNREADABLE: model.unreadable}
        notes = {"trace_id": trace.trace_id, **facts, "memories": store.items()}
        await self.context.cache.write_notes(trace.trace_id, notes)
        return self._memory(store, notes)

    def _memory(self, store: ExternalStore, notes: SerializedMemory) -> MethodMemory:
        return MethodMemory(store.retrieve, len(notes["memories"]), counts={UNREADABLE: notes[UNREADABLE]})

    async def _read(self, store: ExternalStore, model: LLMBridge, span: Span) -> None:
        try:
            await store.add(span.text, date_of(span))
        except MemskillError:
            raise
        except asyncio.CancelledError:
            model.stop()
            raise
        except Exception as error:  # a defect of the library fails this trace only
            model.check()
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelError(f"{self.package} failed at span {span.index} of trace {span.trace_id}: {what}") from error
        model.check()

    def summary_metadata(self) -> dict[str, Any]:
        return {"system": self._system()}

    def _system(self) -> str:
        return f"{self.package} {metadata.version(self.package)}"


def date_of(span: Span) -> str:
    """The date in the first line of a span, "" if there is none."""
    found = _DATE_LINE.match(span.text)
    return found[1] if found else ""


def read_object(text: str, key: str) -> dict[str, Any]:
    """The JSON object with ``key`` in a reply. Text around it is ignored and small errors are repaired.

    The library would get such an object from a provider's JSON mode. Raises UnreadableReplyError if there is none.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        cut = isinstance(text, ReplyText) and text.cut
        value = repair_json(text[start:]) if start >= 0 and not cut else None
    if not isinstance(value, dict) or key not in value:
        raise UnreadableReplyError(f'expected one JSON object with "{key}", not {text.strip()[:80]!r}')
    try:  # JSON can contain lone surrogates, which UTF-8 cannot encode, and can be nested too deep
        whole: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise UnreadableReplyError("JSON that nests too deep, or has a number too large") from None
    return whole
