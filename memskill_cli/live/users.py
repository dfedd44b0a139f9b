"""The users whose files and memories are open, bounded in number and size."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from memskill_cli.config import MemoryConfig
from memskill_cli.errors import MemoryBankError
from memskill_cli.live.store import REINDEX, Store, User
from memskill_cli.live.user_file import UserFile
from memskill_cli.live.user_memory import UserMemory
from memskill_cli.memory.encoder_pair import EncoderPair

MOST_USERS = 64
"""Users whose files stay open: three file descriptors each."""
MOST_ROWS = 200_000
"""Memories and sources of open users that stay in RAM: about 4 kB each with 384 dimensions."""


class OpenUser:
    """An open file, and the memory that is built from it when it is needed."""

    def __init__(self, user: User, file: UserFile, load: Callable[[], UserMemory]) -> None:
        self.number, self.user_id = user
        self.file = file
        self.writing = asyncio.Lock()
        """Held while a span is read or a memory is changed. Readers do not need it."""
        self.uses = 0
        self.loading = asyncio.Lock()
        """Held while the memory is built."""
        self._load = load
        self._memory: UserMemory | None = None

    async def memory(self) -> UserMemory | None:
        """The memory, built in another thread if it is not there. None if the user was forgotten in the meantime."""
        async with self.loading:
            if self._memory is None and not self.file.closed:
                self._memory = await asyncio.to_thread(self._load)
            return self._memory

    @property
    def loaded(self) -> UserMemory | None:
        return self._memory

    def drop_memory(self) -> None:
        self._memory = None

    @property
    def rows(self) -> int:
        return self._memory.rows if self._memory else 0


class OpenUsers:
    """The open users of a store; those used least recently are closed. For one event loop."""

    def __init__(self, store: Store, encoders: EncoderPair, settings: MemoryConfig) -> None:
        self._store, self._encoders, self._settings = store, encoders, settings
        self._open: OrderedDict[int, OpenUser] = OrderedDict()

    @asynccontextmanager
    async def using(self, user: User) -> AsyncIterator[OpenUser]:
        """An open user, who stays open during the block. MemoryBankError if its vectors are another encoder's."""
        opened = self._open.get(user.number) or self._add(user)
        self._open.move_to_end(user.number)
        opened.uses += 1
        try:
            yield opened
        finally:
            opened.uses -= 1
            self._shrink()

    def close(self, number: int) -> None:
        """Close a user's file."""
        if (opened := self._open.pop(number, None)) is not None:
            opened.file.close()

    def close_all(self) -> None:
        for number in list(self._open):
            self.close(number)

    def _add(self, user: User) -> OpenUser:
        file, identity = self._store.open_file(user), encoder_identity(self._encoders)
        if (found := file.fact("encoder", identity)) != identity:
            file.close()
            raise wrong_encoder(self._store, found, identity)
        if not file.fact("encoder"):
            file.set_fact("encoder", identity)
        load = lambda: UserMemory.load(file, user.user_id, self._encoders, self._settings)  # noqa: E731
        opened = self._open[user.number] = OpenUser(user, file, load)
        return opened

    def _shrink(self) -> None:
        for number, opened in list(self._open.items()):
            if len(self._open) <= MOST_USERS and sum(user.rows for user in self._open.values()) <= MOST_ROWS:
                return
            if not opened.uses and number != next(reversed(self._open)):
                self.close(number)


def encoder_identity(encoders: EncoderPair) -> str:
    """What vectors depend on: the models of both spaces with their revisions."""
    return " | ".join(dict.fromkeys((encoders.state.name, encoders.retrieval.name)))


def wrong_encoder(store: Store, found: str, given: str) -> MemoryBankError:
    return MemoryBankError(
        f"the vectors in {store.folder} were made by the encoder {found}, not by {given}",
        hint=f"open it with that encoder, or make all vectors anew: {REINDEX} {store.folder}",
    )
