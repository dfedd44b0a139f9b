"""Replies on disk, so that nothing is paid for twice. Failures and keys are never in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson
from filelock import FileLock

from memskill_cli.errors import ModelError

_PATIENCE = 30.0  # seconds to wait for another process's write
_FORMAT = 1
"""``PRAGMA user_version`` of the file: 0 had replies only, 1 has the bill beside each."""


class Stored(NamedTuple):
    """A reply, and the bill of the call that got it (JSON, "" if none is known)."""

    text: str
    bill: str = ""

    @property
    def cut(self) -> bool:
        """Whether the token limit ended the reply; False of replies stored before this was recorded."""
        return bool(self.bill and orjson.loads(self.bill).get("cut"))


class ResponseCache:
    """One SQLite file, ``<folder>/responses.sqlite``, which several processes may use at once.

    :meth:`get` costs some 20 µs, :meth:`put` 100 and, once in a thousand, a wait for the disk.
    A damaged file is set aside and a new one begun; a disk that takes no more costs the caching, not the run; of
    both ``notice`` is told. ModelError if the file cannot be opened at all.
    """

    def __init__(self, folder: Path, *, notice: Callable[[str], None] = lambda _: None) -> None:
        self.path = folder / "responses.sqlite"
        self._notice = notice
        self._told = False
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._reader, self._writer = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise ModelError(
                f"the cache of replies {self.path} cannot be opened: {error}", hint="make the folder writable"
            ) from None
        except sqlite3.DatabaseError:
            self._begin_anew()

    def get(self, key: str) -> Stored | None:
        """The reply stored under ``key``, if there is one."""
        try:
            row = self._reader.execute("SELECT text, bill FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return None
        return Stored(*row) if row else None

    def put(self, key: str, text: str, bill: str = "") -> None:
        """Store a reply and its bill as one, durably against a crash of the process."""
        try:
            with self._lock:
                self._writer.execute(
                    "INSERT OR REPLACE INTO replies (key, text, bill) VALUES (?, ?, ?)", (key, text, bill)
                )
        except sqlite3.DatabaseError as error:
            self._failed(error)

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """One connection to read and one to write, so that no reader ever waits for a writer."""
        writer = self._connect()
        # SQLite does not wait when two processes turn a new file's write-ahead log on at once.
        with FileLock(f"{self.path}.lock", timeout=_PATIENCE, poll_interval=0.01):
            with contextlib.closing(writer.execute("PRAGMA journal_mode = WAL")):
                pass
            writer.execute("PRAGMA synchronous = NORMAL")
            if writer.execute("PRAGMA user_version").fetchone()[0] < _FORMAT:
                self._prepare(writer)
        return self._connect(), writer

    def _prepare(self, writer: sqlite3.Connection) -> None:
        """A new file, or one of format 0, as it should be; another process may be at it as well."""
        writer.execute("BEGIN IMMEDIATE")
        if writer.execute("PRAGMA user_version").fetchone()[0] < _FORMAT:
            writer.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"
            )
            writer.execute("ALTER TABLE replies ADD COLUMN bill TEXT NOT NULL DEFAULT ''")
            writer.execute(f"PRAGMA user_version = {_FORMAT}")
        writer.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        if not isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError)):
            with self._lock:
                self._begin_anew()
        elif not self._told:
            self._told = True
            self._notice(f"replies are not cached any more ({self.path}: {error}); calls may be paid for again")

    def _begin_anew(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._reader, self._writer = self._open()
        self._notice(f"the cache of replies was damaged: set aside as {aside}, a new one begun")
