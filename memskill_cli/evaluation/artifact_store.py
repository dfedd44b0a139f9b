"""Stored memories of an evaluation: memory banks in Chroma, and the memories of other systems as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import orjson

from memskill_cli.config import digest
from memskill_cli.errors import MemoryBankError
from memskill_cli.memory.store import MemoryStore
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.utils import files

SerializedMemory = dict[str, Any]
"""The memories of one trace in the form that a method stores, as a JSON object."""


class MemoryCache(Protocol):
    """Stores a method's memories of each trace, so that they are not paid for again."""

    def read_bank(self, trace_id: str, /) -> Awaitable[StoredBank | None]:
        """The memory bank of a trace if it was written completely, else None."""
        ...

    def write_bank(self, trace_id: str, bank: StoredBank, /) -> Awaitable[None]: ...

    def read_notes(self, trace_id: str, /) -> Awaitable[SerializedMemory | None]: ...

    def write_notes(self, trace_id: str, notes: SerializedMemory, /) -> Awaitable[None]: ...


class EvalArtifactStore:
    """The memory cache of one evaluation.

    It is in ``folder``, which is created when something is first written. With a Chroma ``server`` the banks are there;
    as other runs may use the same server, bank names begin with ``owner``. ``notice`` takes messages about damaged
    data. Methods raise MemoryBankError if stored memories cannot be read, or if nothing can be written.
    """

    def __init__(self, folder: Path, server: str, owner: str, notice: Callable[[str], None]) -> None:
        self._folder, self._owner, self._notice = folder, owner, notice
        self._place = server or folder
        self._store: MemoryStore | None = None
        self._opening = asyncio.Lock()

    async def read_bank(self, trace_id: str) -> StoredBank | None:
        return await asyncio.to_thread((await self._banks()).read, self._name(trace_id))

    async def write_bank(self, trace_id: str, bank: StoredBank) -> None:
        await asyncio.to_thread((await self._banks()).write, dataclasses.replace(bank, bank_id=self._name(trace_id)))

    async def read_notes(self, trace_id: str) -> SerializedMemory | None:
        file = self._file(trace_id)
        try:
            notes: SerializedMemory = orjson.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            hint = "delete the file; the trace is then read again, with model replies from the cache"
            raise MemoryBankError(f"{file} cannot be read: {error}", hint=hint) from None
        if not isinstance(notes, dict):
            raise MemoryBankError(f"{file} cannot be read: it has no object", hint="delete the file")
        return notes

    async def write_notes(self, trace_id: str, notes: SerializedMemory) -> None:
        files.write_json(self._file(trace_id), notes)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    async def _banks(self) -> MemoryStore:
        async with self._opening:
            if self._store is None:
                files.check_owned(self._folder)  # Chroma makes the folder
                self._store = await asyncio.to_thread(MemoryStore, self._place, self._notice)
            return self._store

    def _name(self, trace_id: str) -> str:
        return f"{self._owner}/{trace_id}"

    def _file(self, trace_id: str) -> Path:
        return self._folder / f"{digest(trace_id)}.json"
