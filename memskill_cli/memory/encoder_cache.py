"""Vectors on disk, found by content: a text is encoded once per encoder, ever.

One SQLite file (write-ahead log, so that several processes may share it) with float32 blobs. What it holds can always
be computed again, so a broken file is set aside with a notice instead of stopping anything.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from memskill_cli.errors import EncoderError
from memskill_cli.types import Vector

T = TypeVar("T")

FILE_NAME = "embeddings.sqlite3"
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_KEYS_A_QUERY = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS encoders (name TEXT PRIMARY KEY, dim INTEGER NOT NULL);
"""


def content_key(encoder: str, side: str, text: str) -> bytes:
    """32 bytes that name a text as one encoder sees it; ``side`` is "" for an encoder that treats both sides alike."""
    return hashlib.sha256("\0".join((encoder, side, text)).encode()).digest()


class EncoderCache:
    """Vectors of every encoder, in ``<folder>/embeddings.sqlite3``; in memory only, with no folder.

    Not for several threads at once: :class:`~memskill_cli.memory.encoders.CachedEncoder` holds a lock around it.
    ``notice`` is told when a broken file was set aside. EncoderError: the file can't be opened, read or written.
    """

    def __init__(self, folder: Path | None, notice: Callable[[str], None]) -> None:
        self._path = folder / FILE_NAME if folder else None
        self._notice = notice
        self._db = self._open()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vector]:
        """The vectors that are there; keys that are not are left out."""

        def read() -> dict[bytes, Vector]:
            found: dict[bytes, Vector] = {}
            for chunk in _chunks(keys):
                query = f"SELECT key, vector FROM vectors WHERE key IN ({', '.join('?' * len(chunk))})"  # noqa: S608
                found |= {key: np.frombuffer(blob, "<f4") for key, blob in self._db.execute(query, chunk)}
            return found

        return self._guarded(read)

    def put(self, encoder: str, vectors: Mapping[bytes, Vector]) -> None:
        """Keep vectors, all of one encoder and one dimension, durably and in one transaction."""
        rows = [(key, np.ascontiguousarray(vector, "<f4").tobytes()) for key, vector in vectors.items()]
        dim = len(next(iter(vectors.values())))

        def write() -> None:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                self._db.execute("INSERT OR REPLACE INTO encoders VALUES (?, ?)", (encoder, dim))

        self._guarded(write)

    def dim(self, encoder: str) -> int | None:
        """The dimension of an encoder's vectors, if it ever encoded anything."""

        def read() -> int | None:
            row = self._db.execute("SELECT dim FROM encoders WHERE name = ?", (encoder,)).fetchone()
            return row[0] if row else None

        return self._guarded(read)

    def close(self) -> None:
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            if self._path is None:
                return self._connect()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait when two processes turn a new file's write-ahead log on at once.
            with FileLock(f"{self._path}.lock", poll_interval=0.01):
                return self._connect()
        except sqlite3.DatabaseError as error:
            if not self._is_broken(error):
                raise self._unusable(error) from error
            self._set_aside(error)
            return self._connect()
        except OSError as error:
            raise self._unusable(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path or ":memory:", timeout=60, check_same_thread=False)
        try:
            db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_SCHEMA}")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do ``work``; once more on a fresh file if the old one turns out to be broken."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if not self._is_broken(error):
                raise self._unusable(error) from error
            self._db.close()
            self._set_aside(error)
            self._db = self._connect()
            return work()

    def _is_broken(self, error: sqlite3.DatabaseError) -> bool:
        return self._path is not None and error.sqlite_errorcode & 0xFF in _BROKEN

    def _set_aside(self, error: sqlite3.Error) -> None:
        assert self._path is not None
        number = 1
        while (aside := self._path.with_suffix(f".broken-{number}")).exists():
            number += 1
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._notice(f"the cache of embeddings was broken ({error}); it is now {aside} and a new one is begun")

    def _unusable(self, error: Exception) -> EncoderError:
        return EncoderError(
            f"the cache of embeddings {self._path}: {error}",
            hint="see that the folder can be written and the disk is not full",
        )


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chunk := list(islice(rest, _KEYS_A_QUERY)):
        yield chunk
