"""Disk cache of embeddings, keyed by content: each encoder encodes a text only once.

One SQLite file with float32 blobs. It has a write-ahead log, so several processes can share it. The vectors can always
be computed again, so a damaged file is renamed with a notice and does not stop the command.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.types import Vector
from memskill_cli.utils.shared_database import SharedDatabase

FILE_NAME = "embeddings.sqlite3"
_PATIENCE = 5.0
"""Seconds to wait for a lock. The worker thread of an encoder waits, not the event loop."""
_KEYS_PER_QUERY = 500
_WIDEST = 1_000_000
_UNIT_ERROR = 1e-3
# Checksums have a table of their own, so that older versions can use the same file.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS encoders (name TEXT PRIMARY KEY, dim INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS checksums (key BLOB PRIMARY KEY, checksum BLOB NOT NULL) WITHOUT ROWID",
)
_QUERY = "SELECT key, vector, checksum FROM vectors LEFT JOIN checksums USING (key) WHERE key IN (%s)"


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

    Each vector has a checksum with its key. One that does not fit is not used, so that the text is encoded again. Rows
    of older versions have no checksum; they count if they have the form of a unit vector.

    Not thread-safe: :class:`~memskill_cli.memory.encoders.CachedEncoder` holds a lock. ``notice`` is called when a
    damaged file was renamed, when vectors were damaged, and while the file is locked by another process: then nothing
    is found and nothing is stored. EncoderError if the file cannot be opened, read or written.
    """

    def __init__(self, folder: Path | None, notice: Callable[[str], None]) -> None:
        self._path = folder / FILE_NAME if folder else None
        self._notice = notice
        self._said = False
        with self._errors():
            self._db = SharedDatabase(
                self._path, _prepare, what="embedding cache", notice=notice, patience=_PATIENCE, backup=_backup
            )

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vector]:
        """The cached vectors, (D,) each. Missing keys, and those of damaged vectors, are omitted."""
        wanted = list(keys)

        def read(db: sqlite3.Connection) -> list[tuple[bytes, Any, Any]]:
            return [row for chunk in _chunks(wanted) for row in db.execute(_QUERY % ", ".join("?" * len(chunk)), chunk)]

        rows: list[tuple[bytes, Any, Any]] = []
        with self._errors():
            rows = self._db.read(read, rows)
        found = {key: np.frombuffer(blob, "<f4") for key, blob, known in rows if _is_sound(key, blob, known)}
        if len(found) < len(rows) and not self._said:
            self._said = True
            self._notice(f"{self._path}: vectors are damaged; their texts are encoded again")
        return found

    def put(self, encoder: str, vectors: Mapping[bytes, Vector]) -> None:
        """Store vectors of one encoder and one dimension, durably, in one transaction."""
        blobs = {key: np.ascontiguousarray(vector, "<f4").tobytes() for key, vector in vectors.items()}
        dim = len(next(iter(vectors.values())))
        checks = [(key, _checksum(key, blob)) for key, blob in blobs.items()]

        def write(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                db.executemany("INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)", blobs.items())
                db.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?)", checks)
                db.execute("INSERT OR REPLACE INTO encoders (name, dim) VALUES (?, ?)", (encoder, dim))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

        with self._errors():
            self._db.write(write)

    def dim(self, encoder: str) -> int | None:
        """The dimension of an encoder's vectors; None if it has not encoded anything yet."""
        query = "SELECT dim FROM encoders WHERE name = ?"
        with self._errors():
            row = self._db.read(lambda db: db.execute(query, (encoder,)).fetchone(), None)
        return row[0] if row and isinstance(row[0], int) and 0 < row[0] <= _WIDEST else None

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise EncoderError(
                f"the embedding cache {self._path}: {error}",
                hint="check that the folder is writable and the disk is not full",
            ) from error


def _prepare(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        db.execute(statement)


def _backup(path: Path) -> Path:
    names = (path.with_suffix(f".broken-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _checksum(key: bytes, blob: bytes) -> bytes:
    return hashlib.blake2b(key + blob, digest_size=8).digest()


def _is_sound(key: bytes, blob: Any, known: Any) -> bool:
    """Whether a row is as it was written: by its checksum; in one without, by the form of a unit vector."""
    if not isinstance(blob, bytes) or not blob or len(blob) % 4:
        return False
    if known is not None:
        return bool(known == _checksum(key, blob))
    length = float(np.square(np.frombuffer(blob, "<f4"), dtype=np.float64).sum())
    return length == 0 or abs(length - 1) < _UNIT_ERROR


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(keys)
    while chunk := list(islice(remaining, _KEYS_PER_QUERY)):
        yield chunk
