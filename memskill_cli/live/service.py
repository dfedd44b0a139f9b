"""The memory of many users: add, search, erase. One event loop runs it; :mod:`memskill_cli.app.memory` opens it.

Rules that keep it correct: a user's ``writing`` lock is held while the user's memory changes, also while a model is
asked; what changes a memory in RAM and what commits it happen without an ``await`` in between, so readers need no lock
and see only what is committed. A turn is stored before anything else is done with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from memskill_cli.config import MemoryConfig
from memskill_cli.errors import AuthError, BudgetExceededError, MemoryBankError, MemskillError, ModelError, UsageError
from memskill_cli.live import messages as given
from memskill_cli.live import transfer, views
from memskill_cli.live.database import size_of
from memskill_cli.live.prompt_text import prompt_text
from memskill_cli.live.records import AddResult, Change, Found, Metadata, Version
from memskill_cli.live.spans import Piece, SpanRule, cut
from memskill_cli.live.store import Store, User
from memskill_cli.live.user_file import (
    MemoryRow,
    MemoryWrite,
    UserFile,
    WaitingSession,
    read_metadata,
    to_json,
)
from memskill_cli.live.user_memory import UserMemory, by_hand, item_id, number_of, version_row
from memskill_cli.live.users import OpenUser, OpenUsers
from memskill_cli.live.views import UnknownMemoryError
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.retrieval import make_ranker
from memskill_cli.types import MemoryChange, Query, Retrieved, Turn

DEFAULT_SESSION = "default"
"""The session of turns that were added without one."""
MOST_FOUND = 1_000
"""Most memories that one search returns."""
LISTED = 256
"""Memories that are listed before other calls go on."""
AT_ONCE = 16
"""Users whose turns are read at the same time when a memory is closed."""


class Reader(Protocol):
    """Reads one span (:class:`memskill_cli.live.reading.SkillReader`)."""

    async def read(
        self, user_id: str, file: UserFile, memory: UserMemory, session: WaitingSession, piece: Piece
    ) -> list[MemoryChange]: ...

    def skip(self, file: UserFile, session: WaitingSession, piece: Piece) -> None: ...


class Readers(Protocol):
    """Gives a reader of spans for the time of a block, and leaves the process as it was when none is used."""

    def __call__(self) -> AbstractAsyncContextManager[Reader]: ...


class Encoding(Protocol):
    """A block in which texts are encoded."""

    def __call__(self) -> AbstractAsyncContextManager[None]: ...


class MemoryService:
    """See the module. Texts and names are checked here: UsageError for those that are not valid."""

    def __init__(
        self,
        store: Store,
        encoders: EncoderPair,
        settings: MemoryConfig,
        rule: SpanRule,
        readers: Readers,
        encoding: Encoding,
    ) -> None:
        self._store, self._encoders, self._settings, self._rule = store, encoders, settings, rule
        self._readers, self._encoding = readers, encoding
        self._users = OpenUsers(store, encoders, settings)

    def close(self) -> None:
        """Close the files of all users. Store and encoders are the caller's."""
        self._users.close_all()

    # --- writing ---

    async def add(
        self, messages: object, user_id: str, session_id: str | None = None, metadata: Metadata | None = None
    ) -> AddResult:
        user_id = given.check_name(user_id, "user_id")
        session = DEFAULT_SESSION if session_id is None else given.check_name(session_id, "session_id")
        turns = given.read_messages(messages, metadata)
        found = self._store.find_or_add(user_id) if turns else self._store.find(user_id)
        if found is None:
            return AddResult([], 0)
        async with self._users.using(found) as user:
            if turns:
                self._store.set_waiting(found, True)
                user.file.add_turns(session, turns)
            async with user.writing:
                return await self._read_waiting(user, flush=False)

    async def flush(self, user_id: str, skip: bool = False) -> AddResult:
        if (found := self._find(user_id)) is None:
            return AddResult([], 0)
        async with self._users.using(found) as user, user.writing:
            return await self._read_waiting(user, flush=True, skip=skip)

    async def flush_all(self) -> list[MemskillError]:
        """Read what waits of every user; the errors of those for whom that failed, whose turns wait on."""
        places = asyncio.Semaphore(AT_ONCE)

        async def flush(user_id: str) -> MemskillError | None:
            async with places:
                try:
                    await self.flush(user_id)
                except MemskillError as error:
                    return error
            return None

        results = await asyncio.gather(*(flush(user.user_id) for user in self._store.waiting()))
        return [error for error in results if error is not None]

    async def update(
        self, memory_id: str, text: str, metadata: Metadata | None = None, user_id: str | None = None
    ) -> Found:
        text = given.check_text(text, "text").strip()
        if not text:
            raise UsageError("text is empty", hint="delete the memory instead")
        added = given.check_metadata(metadata, "metadata")
        async with self._open(memory_id, user_id) as (user, number), user.writing, self._encoding():
            memory = await user.memory()
            (state,), (retrieval,) = await self._encoders.embed([text])
            row = self._row(user, number, memory_id)
            if memory is None or row.deleted:
                raise UnknownMemoryError(memory_id)
            now = datetime.now(UTC).isoformat()
            known = len(user.file.versions_of(number))
            try:
                item = memory.bank.update(item_id(number), text, state, retrieval, by_hand(user.user_id, now))
                in_state, in_retrieval = memory.stored_vectors(item.item_id)
                changed = row._replace(
                    text=item.text,
                    state=in_state,
                    retrieval=in_retrieval,
                    updated=now,
                    metadata=to_json(read_metadata(row.metadata) | added),
                )
                user.file.write_memory(MemoryWrite(changed, known, [version_row(item.history[-1], now)]))
            except BaseException:
                user.drop_memory()
                raise
            return views.to_found(self._row(user, number, memory_id), memory_id, 0.0, user.file)

    async def feedback(self, memory_id: str, score: float, user_id: str | None = None) -> None:
        if isinstance(score, bool) or not isinstance(score, int | float) or not -1 <= score <= 1:
            raise UsageError("score must be a number from -1 (wrong or harmful) to 1 (helpful)")
        async with self._open(memory_id, user_id) as (user, number):
            self._row(user, number, memory_id)
            user.file.add_feedback(number, float(score), datetime.now(UTC).isoformat())

    # --- erasure ---

    async def delete(self, memory_id: str, user_id: str | None = None) -> None:
        async with self._open(memory_id, user_id) as (user, number), user.writing:
            self._row(user, number, memory_id)
            with self._store.erasing(User(user.number, user.user_id)):
                user.file.erase_memory(number)
                if (memory := user.loaded) is not None:
                    memory.erase(item_id(number))
                await asyncio.to_thread(user.file.rewrite)

    async def delete_all(self, user_id: str) -> int:
        if (found := self._find(user_id)) is None:
            return 0
        async with self._users.using(found) as user, user.writing, user.loading:
            if user.file.closed:
                return 0
            count = len(user.file.memories())
            with self._store.erasing(found):
                user.file.erase_all()
                user.drop_memory()
                self._store.set_waiting(found, False)
                await asyncio.to_thread(user.file.rewrite)
            return count

    async def forget(self, user_id: str) -> bool:
        if (found := self._find(user_id)) is None:
            return False
        async with self._users.using(found) as user, user.writing, user.loading:
            if user.file.closed:
                return False
            user.drop_memory()
            self._users.close(user.number)
            self._store.forget(found)
            return True

    # --- reading ---

    async def search(self, query: str, user_id: str, limit: int = 5) -> list[Found]:
        query, found = given.check_text(query, "query"), self._find(user_id)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST_FOUND:
            raise UsageError(f"limit must be a number from 1 to {MOST_FOUND}")
        if found is None:
            return []
        async with self._encoding(), self._users.using(found) as user:
            await self._encoders.retrieval.aencode([query], "query")  # before the memory is looked at: it may take long
            if (memory := await user.memory()) is None:
                return []
            rank = make_ranker(memory.bank, self._encoders, self._settings, None, limit)
            ranked = await rank(Query("", user_id, "", query, ()))
            if user.file.closed:
                return []
            known = ((user.file.memory(number_of(item.item_id)), score) for item, score in ranked)
            return [
                views.to_found(row, views.public_id(user.number, row.number), float(score), user.file)
                for row, score in known
                if row is not None and not row.deleted
            ]

    async def context(self, query: str, user_id: str, max_tokens: int = 800) -> str:
        query, found = given.check_text(query, "query"), self._find(user_id)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise UsageError("max_tokens must be a number of at least 1")
        if found is None:
            return ""
        async with self._encoding(), self._users.using(found) as user:
            await self._encoders.retrieval.aencode([query], "query")
            if (memory := await user.memory()) is None:
                return ""
            sources, k = await memory.sources(), self._settings.num_memories
            ask = Query("", user_id, "", query, ())
            memories = await make_ranker(memory.bank, self._encoders, self._settings, None, k)(ask)
            said: Sequence[Retrieved] = ()
            if sources is not None:
                said = await make_ranker(memory.bank, self._encoders, self._settings, sources, k)(ask)
            return prompt_text(memories, said, max_tokens, self._settings.memory_share)

    async def get(self, memory_id: str, user_id: str | None = None) -> Found | None:
        try:
            async with self._open(memory_id, user_id) as (user, number):
                row = self._row(user, number, memory_id)
                return None if row.deleted else views.to_found(row, memory_id, 0.0, user.file)
        except UnknownMemoryError:
            return None

    async def get_all(self, user_id: str) -> list[Found]:
        if (found := self._find(user_id)) is None:
            return []
        async with self._users.using(found) as user:
            found_all: list[Found] = []
            for row in user.file.memories():
                found_all.append(views.to_found(row, views.public_id(user.number, row.number), 0.0, user.file))
                if len(found_all) % LISTED == 0:
                    await asyncio.sleep(0)  # other calls go on
                    if user.file.closed:
                        return []
            return found_all

    async def history(self, memory_id: str, user_id: str | None = None) -> list[Version]:
        async with self._open(memory_id, user_id) as (user, number):
            self._row(user, number, memory_id)
            return [views.to_version(row) for row in user.file.versions_of(number)]

    async def users(self) -> list[str]:
        return [user.user_id for user in self._store.users()]

    async def export(self, user_id: str) -> dict[str, Any]:
        async with self._users.using(self._known(user_id)) as user:
            return transfer.export(user.file, user_id)

    async def import_user(self, data: object, user_id: str | None = None) -> int:
        tables = transfer.check(data)
        name = given.check_name(tables.user_id if user_id is None else user_id, "user_id")
        async with self._users.using(self._store.find_or_add(name)) as user, user.writing, self._encoding():
            vectors = await transfer.encode(tables, self._encoders)
            if user.file.turns("1 LIMIT 1") or user.file.next_number("memory") > 1:
                raise UsageError("the user has memories or messages", hint="import into a user that is not there yet")
            transfer.write(user.file, tables, vectors)
            user.drop_memory()
            self._store.set_waiting(User(user.number, name), bool(user.file.pending()))
            return len(user.file.memories())

    async def stats(self, user_id: str | None = None) -> dict[str, Any]:
        if user_id is None:
            calls = self._store.usage()
            return {"users": len(self._store.users()), "bytes": size_of(self._store.folder), "calls": calls}
        found = self._known(user_id)
        async with self._users.using(found) as user:
            return {"user": user_id, **user.file.counts(), "bytes": size_of(user.file.path)}

    # --- helpers ---

    async def _read_waiting(self, user: OpenUser, flush: bool, skip: bool = False) -> AddResult:
        """Read the spans that are complete (``flush``: all that waits), the oldest session first. ``skip``: leave out
        those for which the model's call fails."""
        changes: list[Change] = []
        if user.file.closed:  # the user was forgotten while this call waited
            return AddResult(changes, 0)
        for session in user.file.waiting():
            turns = [Turn(turn.speaker, turn.text) for turn in session.turns]
            for piece in cut(turns, self._rule, session.offset, flush or session.ended):
                changes += await self._read(user, session, piece, skip)
        pending = user.file.pending()
        if not pending:
            self._store.set_waiting(User(user.number, user.user_id), False)
        return AddResult(changes, pending)

    async def _read(self, user: OpenUser, session: WaitingSession, piece: Piece, skip: bool) -> list[Change]:
        try:
            async with self._readers() as reader:
                memory = await user.memory()
                assert memory is not None  # the writing lock is held, so the user is not forgotten
                try:
                    made = await reader.read(user.user_id, user.file, memory, session, piece)
                except ModelError as error:
                    if not skip or isinstance(error, AuthError):
                        raise
                    reader.skip(user.file, session, piece)
                    return []
        except (ModelError, BudgetExceededError) as error:
            error.hint = (
                f"the messages are stored, so do not add them again; a later add or flush reads them. {error.hint}"
            )
            raise
        except BaseException:
            user.drop_memory()
            raise
        return [views.to_change(user.number, change) for change in made]

    def _find(self, user_id: str) -> User | None:
        return self._store.find(given.check_name(user_id, "user_id"))

    def _known(self, user_id: str) -> User:
        if (found := self._find(user_id)) is None:
            raise MemoryBankError(
                f"there is no user {user_id!r} in {self._store.folder}",
                hint=f"memskill memory list --memory {self._store.folder} shows the users",
            )
        return found

    @asynccontextmanager
    async def _open(self, memory_id: str, user_id: str | None) -> AsyncIterator[tuple[OpenUser, int]]:
        """The user of a memory and the memory's number. An id of another user than ``user_id`` is unknown."""
        user_number, number = views.parse_id(memory_id)
        found = self._store.numbered(user_number)
        if found is None or (user_id is not None and found.user_id != user_id):
            raise UnknownMemoryError(memory_id)
        async with self._users.using(found) as user:
            yield user, number

    def _row(self, user: OpenUser, number: int, memory_id: str) -> MemoryRow:
        row = None if user.file.closed else user.file.memory(number)
        if row is None:
            raise UnknownMemoryError(memory_id)
        return row
