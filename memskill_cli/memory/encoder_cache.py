"""Disk cache of embeddings, keyed by content: each encoder encodes a text only once.

One SQLite file with float32 blobs. It has a write-ahead log, so several processes can share it. The vectors can always
be computed again, so a damaged file is renamed with a notice and does not stop the command.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from filelock import FileLock

from memskill_cli.errors import EncoderError
from memskill_cli.types import Vector

T = TypeVar("T")

FILE_NAME = "embeddings.sqlite3"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_KEYS_PER_QUERY = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS encoders (name TEXT PRIMARY KEY, dim INTEGER NOT NULL);
"""


def content_key(encoder: str, side: str, text: str) -> bytes:
    """Cache key (32 bytes) of a text for one encoder. ``side`` is "" for a symmetric encoder."""
    return hashlib.sha256("\0".join((encoder, side, text)).encode()).digest()


class VectorCache(Protocol):
    """Where an encoder keeps its vectors. See :class:`EncoderCache`."""

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vector]: ...

    def put(self, encoder: str, vectors: Mapping[bytes, Vector]) -> None: ...

    def dim(self, encoder: str) -> int | None: ...

    def close(self) -> None: ...


class NoCache:
    """A :class:`VectorCache` that keeps nothing."""

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vector]:
        return {}

    def put(self, encoder: str, vectors: Mapping[bytes, Vector]) -> None:
        pass

    def dim(self, encoder: str) -> int | None:
        return None

    def close(self) -> None:
        pass


class EncoderCache:
    """Vectors of all encoders, in ``<folder>/embeddings.sqlite3``; without a folder, in RAM only.

    Not thread-safe: :class:`~memskill_cli.memory.encoders.CachedEncoder` holds a lock. ``notice`` is called when a
    damaged file was renamed. EncoderError if the file cannot be opened, read or written.
    """

    def __init__(self, folder: Path | None, notice: Callable[[str], None]) -> None:
        self._path = folder / FILE_NAME if folder else None
        self._notice = notice
        self._db = self._open()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vector]:
        """The cached vectors, (D,) each. Missing keys are omitted."""

        def read() -> dict[bytes, Vector]:
            found: dict[bytes, Vector] = {}
            for chunk in _chunks(keys):
                query = f"SELECT key, vector FROM vectors WHERE key IN ({', '.join('?' * len(chunk))})"  # noqa: S608
                found |= {key: np.frombuffer(blob, "<f4") for key, blob in self._db.execute(query, chunk)}
            return found

        return self._with_recovery(read)

    def put(self, encoder: str, vectors: Mapping[bytes, Vector]) -> None:
        """Store vectors of one encoder and one dimension, durably, in one transaction."""
        rows = [(key, np.ascontiguousarray(vector, "<f4").tobytes()) for key, vector in vectors.items()]
        dim = len(next(iter(vectors.values())))

        def write() -> None:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                self._db.execute("INSERT OR REPLACE INTO encoders VALUES (?, ?)", (encoder, dim))

        self._with_recovery(write)

    def dim(self, encoder: str) -> int | None:
        """The dimension of an encoder's vectors; None if it has not encoded anything yet."""

        def read() -> int | None:
            row = self._db.execute("SELECT dim FROM encoders WHERE name = ?", (encoder,)).fetchone()
            return row[0] if row else None

        return self._with_recovery(read)

    def close(self) -> None:
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            if self._path is None:
                return self._connect()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait when two processes enable the write-ahead log of a new file at the same time.
            with FileLock(f"{self._path}.lock", poll_interval=0.01):
                return self._connect()
        except sqlite3.DatabaseError as error:
            if not self._is_damaged(error):
                raise self._error(error) from error
            self._rename_damaged(error)
            return self._connect()
        except OSError as error:
            raise self._error(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path or ":memory:", timeout=60, check_same_thread=False)
        try:
            db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_SCHEMA}")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _with_recovery(self, work: Callable[[], T]) -> T:
        """Do ``work``. If the file is damaged, replace it and do ``work`` again."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if not self._is_damaged(error):
                raise self._error(error) from error
            self._db.close()
            self._rename_damaged(error)
            self._db = self._connect()
            return work()

    def _is_damaged(self, error: sqlite3.DatabaseError) -> bool:
        return self._path is not None and error.sqlite_errorcode & 0xFF in _DAMAGED

    def _rename_damaged(self, error: sqlite3.Error) -> None:
        assert self._path is not None
        number = 1
        while (backup := self._path.with_suffix(f".broken-{number}")).exists():
            number += 1
        self._path.rename(backup)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._notice(f"the embedding cache was damaged ({error}): it was renamed to {backup} and a new one was created")

    def _error(self, error: Exception) -> EncoderError:
        return EncoderError(
            f"the embedding cache {self._path}: {error}",
            hint="check that the folder is writable and the disk is not full",
        )


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(keys)
    while chunk := list(islice(remaining, _KEYS_PER_QUERY)):
        yield chunk
