"""``Memory`` and ``AsyncMemory``: the memory of a user's own agent, as a library.

Both run everything in one background thread with its own event loop. So any thread and any event loop of the caller
may use one memory at the same time, and a caller's loop is never blocked. docs/live-memory.md explains the methods.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from memskill_cli.errors import MemskillError, UsageError
from memskill_cli.live.records import AddResult, Found, Metadata, Version
from memskill_cli.utils.redaction import redact

if TYPE_CHECKING:
    from memskill_cli.app.memory_service import MemoryRequest
    from memskill_cli.live.service import MemoryService

T = TypeVar("T")
PathLike = str | os.PathLike[str]
Message = Mapping[str, Any]
_log = logging.getLogger("memskill")


class MemoryOptions(TypedDict, total=False):
    """Options of :meth:`Memory.open`, with the names and meanings of the command line's. None: not given."""

    skills: PathLike | None
    """A run directory, the name of a run in ``runs_dir``, or ``"seeds"``. Default: as the store was opened before."""
    runs_dir: PathLike
    model: str | None
    """The model that writes memories."""
    api_base: str | None
    api_key: str | Sequence[str] | None
    """One key, or several that are used in turn."""
    keys: PathLike | None
    """A TOML file of keys."""
    encoder: str | None
    retriever: str | None
    cache_dir: PathLike | None
    """Where files of models are kept. Texts and vectors of a memory are only in its own folder."""
    span_mode: str | None
    chunk_size: int | None
    chunk_overlap: int | None
    concurrency: int | None
    max_cost: float | None
    """Most US dollars for all model calls of this store, in all its openings."""
    settings: Mapping[str, Any]
    """Any setting by its name: ``{"memory.protect": False}``."""
    plugins: Sequence[PathLike]
    """Python files that add encoders, retrievers, …; their code is executed."""
    notice: Callable[[str], None] | None
    """Called with notices, in the background thread. Default: they are logged by the logger ``memskill``."""


class _Session:
    """A background thread with the event loop in which an open memory runs."""

    def __init__(self, folder: PathLike, options: MemoryOptions) -> None:
        _check_names(options)
        self._folder, self._options = Path(folder), options
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._service: MemoryService | None = None
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="memskill memory", daemon=True)
        self._thread.start()

    def start(self) -> Future[None]:
        return self._submit(self._open())

    def call(self, work: Callable[[MemoryService], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run one call of the memory. UsageError if the memory is closed."""
        service = self._service
        if service is None:
            raise UsageError("the memory is closed", hint="open it again: Memory.open(folder)")
        if threading.current_thread() is self._thread:
            raise UsageError("a notice callback cannot call the memory", hint="call it from another thread")
        return self._submit(_redacted(work(service)))

    def stop(self, flush: bool) -> None:
        """Close the memory and end the thread. ``flush``: read what waits first; what fails waits on, and is logged."""
        with self._closing:
            if self._loop.is_closed():
                return
            try:
                self._submit(self._close(flush)).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _open(self) -> None:
        from memskill_cli.app.memory_service import open_service
        from memskill_cli.utils.registry import load_plugins

        notice, warn = _told(self._options, _log.info), _told(self._options, _log.warning)
        load_plugins([Path(file) for file in self._options.get("plugins") or ()], notice)
        request = _request(self._folder, self._options, warn)
        self._service = await _redacted(self._stack.enter_async_context(open_service(request, notice, warn)))

    async def _close(self, flush: bool) -> None:
        service, self._service = self._service, None
        try:
            if service is not None and flush:
                for error in await service.flush_all():
                    _log.warning("messages wait in the memory: %s", redact(str(error)))
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
        finally:
            await self._stack.aclose()


class Memory:
    """The memory of many users in one folder. Open it with :meth:`open`; all methods may be called from any thread.

    ::

        with Memory.open("mem/", skills="runs/support", model="openai/gpt-4o-mini") as memory:
            memory.add([{"role": "user", "content": "I moved to Leeds."}], user_id="u-anna")
            memory.flush("u-anna")
            print(memory.search("Where does she live?", user_id="u-anna"))

    Methods raise UsageError for arguments that are not valid, MemoryBankError if the store cannot be used or has no
    such memory, and those that read or encode also ModelError, EncoderError and BudgetExceededError.
    """

    def __init__(self, session: _Session) -> None:
        self._session = session

    @classmethod
    def open(cls, folder: PathLike, **options: Unpack[MemoryOptions]) -> Memory:
        """Open the memory in ``folder``, which is created if it is missing. See :class:`MemoryOptions`.

        Raises RunLockedError with the pid if another process has it open; MemoryBankError if its vectors were made by
        another encoder; RunError, UsageError for skills and options that are not valid.
        """
        session = _Session(folder, options)
        try:
            session.start().result()
        except BaseException:
            session.stop(flush=False)
            raise
        return cls(session)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As :meth:`close`. After an exception, messages that wait are not read; they stay in the store."""
        self._session.stop(flush=kind is None)

    def close(self) -> None:
        """Read the messages that wait, then close the files. Messages that could not be read wait on in the store."""
        self._session.stop(flush=True)

    def add(
        self,
        messages: str | Message | Sequence[Message],
        user_id: str,
        session_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> AddResult:
        """Store messages, then read the spans that are complete. When this returns or raises a ModelError, the messages
        are on the disk.

        ``messages`` is a text, or messages with ``role`` and ``content`` and perhaps ``name``, ``timestamp``, ``id``,
        ``metadata``. A message whose ``id`` the session has already is left out. Messages of another session end the
        one before. ``metadata`` is attached to all messages.
        """
        return self._session.call(lambda service: service.add(messages, user_id, session_id, metadata)).result()

    def flush(self, user_id: str, skip: bool = False) -> AddResult:
        """Read all messages of a user that wait. ``skip``: spans for which the model's call fails count as read, with
        nothing written; for spans that a model refuses whenever it is asked."""
        return self._session.call(lambda service: service.flush(user_id, skip)).result()

    def search(self, query: str, user_id: str, limit: int = 5) -> list[Found]:
        """The memories of a user that fit ``query`` best, best first; at most ``limit``."""
        return self._session.call(lambda service: service.search(query, user_id, limit)).result()

    def context(self, query: str, user_id: str, max_tokens: int = 800) -> str:
        """The best memories and messages as a text for a prompt, of at most ``max_tokens`` cl100k_base tokens. Also
        messages that wait are found. "" if there is nothing."""
        return self._session.call(lambda service: service.context(query, user_id, max_tokens)).result()

    def get(self, memory_id: str, user_id: str | None = None) -> Found | None:
        """A memory; None if there is none with this id, or if ``user_id`` is given and it is another user's."""
        return self._session.call(lambda service: service.get(memory_id, user_id)).result()

    def get_all(self, user_id: str) -> list[Found]:
        """All memories of a user, in the order in which they were first written."""
        return self._session.call(lambda service: service.get_all(user_id)).result()

    def history(self, memory_id: str, user_id: str | None = None) -> list[Version]:
        """The versions of a memory, the oldest first; also of one that the model has deleted."""
        return self._session.call(lambda service: service.history(memory_id, user_id)).result()

    def update(self, memory_id: str, text: str, metadata: Metadata | None = None, user_id: str | None = None) -> Found:
        """Replace the text of a memory; ``metadata`` is added to its own. The old text stays in its history."""
        return self._session.call(lambda service: service.update(memory_id, text, metadata, user_id)).result()

    def delete(self, memory_id: str, user_id: str | None = None) -> None:
        """Erase a memory, its history and the messages of the spans it was written from."""
        self._session.call(lambda service: service.delete(memory_id, user_id)).result()

    def delete_all(self, user_id: str) -> int:
        """Erase all memories and messages of a user, also those that wait; how many memories there were."""
        return self._session.call(lambda service: service.delete_all(user_id)).result()

    def users(self) -> list[str]:
        """The ids of all users, in the order in which they came."""
        return self._session.call(lambda service: service.users()).result()

    def export(self, user_id: str) -> dict[str, Any]:
        """All that is stored about a user except vectors, as JSON."""
        return self._session.call(lambda service: service.export(user_id)).result()

    def import_user(self, data: Mapping[str, Any], user_id: str | None = None) -> int:
        """Store an export for a user who has nothing yet (default: the user in ``data``); how many memories it has."""
        return self._session.call(lambda service: service.import_user(data, user_id)).result()

    def forget(self, user_id: str) -> bool:
        """Erase everything about a user, also the id; False if there is no such user."""
        return self._session.call(lambda service: service.forget(user_id)).result()

    def feedback(self, memory_id: str, score: float, user_id: str | None = None) -> None:
        """Keep a score from -1 (wrong or harmful) to 1 (helpful) for a memory, as reward for later training."""
        self._session.call(lambda service: service.feedback(memory_id, score, user_id)).result()

    def stats(self, user_id: str | None = None) -> dict[str, Any]:
        """Numbers of memories, messages, spans and bytes of a user; or users, bytes and model calls of the store."""
        return self._session.call(lambda service: service.stats(user_id)).result()


class AsyncMemory:
    """:class:`Memory` for asynchronous code: the same methods, awaited, from any event loop.

    ``async with AsyncMemory.open("mem/") as memory: …``, or ``memory = await AsyncMemory.open("mem/")`` and later
    ``await memory.close()``.
    """

    def __init__(self, session: _Session) -> None:
        self._session = session

    @classmethod
    def open(cls, folder: PathLike, **options: Unpack[MemoryOptions]) -> _Opening:
        """As :meth:`Memory.open`, to be awaited or used in ``async with``."""
        return _Opening(folder, options)

    async def close(self) -> None:
        """As :meth:`Memory.close`."""
        await asyncio.to_thread(self._session.stop, True)

    async def add(
        self,
        messages: str | Message | Sequence[Message],
        user_id: str,
        session_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> AddResult:
        """As :meth:`Memory.add`. If it is cancelled, the messages stay stored, and a reply in flight is kept."""
        return await self._call(lambda service: service.add(messages, user_id, session_id, metadata))

    async def flush(self, user_id: str, skip: bool = False) -> AddResult:
        """As :meth:`Memory.flush`."""
        return await self._call(lambda service: service.flush(user_id, skip))

    async def search(self, query: str, user_id: str, limit: int = 5) -> list[Found]:
        """As :meth:`Memory.search`."""
        return await self._call(lambda service: service.search(query, user_id, limit))

    async def context(self, query: str, user_id: str, max_tokens: int = 800) -> str:
        """As :meth:`Memory.context`."""
        return await self._call(lambda service: service.context(query, user_id, max_tokens))

    async def get(self, memory_id: str, user_id: str | None = None) -> Found | None:
        """As :meth:`Memory.get`."""
        return await self._call(lambda service: service.get(memory_id, user_id))

    async def get_all(self, user_id: str) -> list[Found]:
        """As :meth:`Memory.get_all`."""
        return await self._call(lambda service: service.get_all(user_id))

    async def history(self, memory_id: str, user_id: str | None = None) -> list[Version]:
        """As :meth:`Memory.history`."""
        return await self._call(lambda service: service.history(memory_id, user_id))

    async def update(
        self, memory_id: str, text: str, metadata: Metadata | None = None, user_id: str | None = None
    ) -> Found:
        """As :meth:`Memory.update`."""
        return await self._call(lambda service: service.update(memory_id, text, metadata, user_id))

    async def delete(self, memory_id: str, user_id: str | None = None) -> None:
        """As :meth:`Memory.delete`."""
        await self._call(lambda service: service.delete(memory_id, user_id))

    async def delete_all(self, user_id: str) -> int:
        """As :meth:`Memory.delete_all`."""
        return await self._call(lambda service: service.delete_all(user_id))

    async def users(self) -> list[str]:
        """As :meth:`Memory.users`."""
        return await self._call(lambda service: service.users())

    async def export(self, user_id: str) -> dict[str, Any]:
        """As :meth:`Memory.export`."""
        return await self._call(lambda service: service.export(user_id))

    async def import_user(self, data: Mapping[str, Any], user_id: str | None = None) -> int:
        """As :meth:`Memory.import_user`."""
        return await self._call(lambda service: service.import_user(data, user_id))

    async def forget(self, user_id: str) -> bool:
        """As :meth:`Memory.forget`."""
        return await self._call(lambda service: service.forget(user_id))

    async def feedback(self, memory_id: str, score: float, user_id: str | None = None) -> None:
        """As :meth:`Memory.feedback`."""
        await self._call(lambda service: service.feedback(memory_id, score, user_id))

    async def stats(self, user_id: str | None = None) -> dict[str, Any]:
        """As :meth:`Memory.stats`."""
        return await self._call(lambda service: service.stats(user_id))

    async def _call(self, work: Callable[[MemoryService], Coroutine[Any, Any, T]]) -> T:
        return await asyncio.wrap_future(self._session.call(work))


class _Opening:
    """An asynchronous memory that is being opened: awaitable, and an asynchronous context manager."""

    def __init__(self, folder: PathLike, options: MemoryOptions) -> None:
        self._folder, self._options = folder, options

    def __await__(self) -> Generator[Any, None, AsyncMemory]:
        return self._start().__await__()

    async def __aenter__(self) -> AsyncMemory:
        self._memory = await self._start()
        return self._memory

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._memory._session.stop, kind is None)

    async def _start(self) -> AsyncMemory:
        session = _Session(self._folder, self._options)
        try:
            await asyncio.wrap_future(session.start())
        except BaseException:
            await asyncio.to_thread(session.stop, False)
            raise
        return AsyncMemory(session)


async def _redacted(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Keys are removed from errors, as on the command line."""
    try:
        return await work
    except MemskillError as error:
        error.message, error.hint = redact(error.message), redact(error.hint)
        error.args = (error.message, *error.args[1:])
        raise


def _told(options: MemoryOptions, log: Callable[[str], None]) -> Callable[[str], None]:
    notice = options.get("notice") or log
    return lambda text: notice(redact(text))


def _request(folder: Path, options: MemoryOptions, warn: Callable[[str], None]) -> MemoryRequest:
    from memskill_cli.app.memory_service import MemoryRequest
    from memskill_cli.app.runtime import ProviderAccess
    from memskill_cli.llm.keys import key_file_warning

    given, keys = options.get("api_key"), options.get("keys")
    if keys is not None and (warning := key_file_warning(Path(keys))):
        warn(warning)
    cache, skills = options.get("cache_dir"), options.get("skills")
    access = ProviderAccess(
        (given,) if isinstance(given, str) else tuple(given or ()),
        None if keys is None else Path(keys),
        None if cache is None else Path(cache),
    )
    settings = {name: value for name, value in options.items() if name in _SETTINGS}
    named = None if skills is None else os.fspath(skills)
    return MemoryRequest(folder, settings, access, named, Path(options.get("runs_dir", "runs")))


_SETTINGS = frozenset(
    {
        "model", "api_base", "encoder", "retriever", "span_mode", "chunk_size", "chunk_overlap", "concurrency",
        "max_cost", "settings",
    }
)  # fmt: skip


def _check_names(options: MemoryOptions) -> None:
    for name in options.keys() - MemoryOptions.__annotations__.keys():
        raise TypeError(f"open() got an unexpected keyword argument {name!r}; settings go into settings={{…}}")
