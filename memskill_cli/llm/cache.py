"""Cache of replies on disk: no call is paid for twice. It never contains failures or keys.

litellm's disk cache stores no bill with a reply, and uses pickle.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
from filelock import FileLock

from memskill_cli.errors import ModelError
from memskill_cli.types import CallUsage

_LOCK_TIMEOUT = 30.0  # seconds to wait while another process writes
_FORMAT = 1
"""``PRAGMA user_version`` of the file: 0 has replies only, 1 also has the bill of each."""


class Stored(NamedTuple):
    """A reply and the bill of its call (JSON, "" if unknown)."""

    text: str
    bill: str = ""

    @property
    def cut(self) -> bool:
        """Whether the token limit ended the reply; False for replies stored before this was recorded."""
        return bool(self.bill and orjson.loads(self.bill).get("cut"))

    @property
    def usage(self) -> CallUsage:
        """The tokens of the call that the reply came from (0 if unknown), and 0 seconds."""
        bill = orjson.loads(self.bill) if self.bill else {}
        return CallUsage(bill.get("prompt_tokens") or 0, bill.get("completion_tokens") or 0)


class ReplyCache(Protocol):
    """Where a client keeps the replies that were paid for. See :class:`ResponseCache`."""

    def get(self, key: str) -> Stored | None: ...

    def put(self, key: str, text: str, bill: str = "") -> None: ...


class ResponseCache:
    """One SQLite file, ``<folder>/responses.sqlite``, which several processes can use at the same time.

    :meth:`get` takes about 20 µs, :meth:`put` about 100 µs and, once in a thousand calls, a wait for the disk.
    A damaged file is renamed and replaced by a new one. If the disk is full, caching stops and the run continues.
    ``notice`` is called in both cases. ModelError if the file cannot be opened.
    """

    def __init__(self, folder: Path, *, notice: Callable[[str], None] = lambda _: None) -> None:
        self.path = folder / "responses.sqlite"
        self._notice = notice
        self._notified = False
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._reader, self._writer = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise ModelError(
                f"the reply cache {self.path} cannot be opened: {error}", hint="make the folder writable"
            ) from None
        except sqlite3.DatabaseError:
            self._replace_file()

    def get(self, key: str) -> Stored | None:
        """The reply stored under ``key``, or None."""
        try:
            row = self._reader.execute("SELECT text, bill FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return None
        return Stored(*row) if row else None

    def put(self, key: str, text: str, bill: str = "") -> None:
        """Store a reply and its bill in one transaction. It survives a crash of the process."""
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
        """A connection to read and one to write, so that readers never wait for writers."""
        writer = self._connect()
        # SQLite does not wait when two processes enable the write-ahead log of a new file at the same time.
        with FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT, poll_interval=0.01):
            with contextlib.closing(writer.execute("PRAGMA journal_mode = WAL")):
                pass
            writer.execute("PRAGMA synchronous = NORMAL")
            if writer.execute("PRAGMA user_version").fetchone()[0] < _FORMAT:
                self._prepare(writer)
        return self._connect(), writer

    def _prepare(self, writer: sqlite3.Connection) -> None:
        """Create the tables, or upgrade a file of format 0. Safe while another process does the same."""
        writer.execute("BEGIN IMMEDIATE")
        if writer.execute("PRAGMA user_version").fetchone()[0] < _FORMAT:
            writer.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"
            )
            writer.execute("ALTER TABLE replies ADD COLUMN bill TEXT NOT NULL DEFAULT ''")
            writer.execute(f"PRAGMA user_version = {_FORMAT}")
        writer.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        if not isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError)):
            with self._lock:
                self._replace_file()
        elif not self._notified:
            self._notified = True
            self._notice(f"replies are no longer cached ({self.path}: {error}); calls may be paid for again")

    def _replace_file(self) -> None:
        backup = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, backup)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._reader, self._writer = self._open()
        self._notice(f"the reply cache was damaged: it was renamed to {backup} and a new one was created")
