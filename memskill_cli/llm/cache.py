"""Cache of replies on disk: no call is paid for twice. It never contains failures or keys.

litellm's disk cache stores no bill with a reply, and uses pickle.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from memskill_cli.errors import ModelError
from memskill_cli.types import CallUsage
from memskill_cli.utils.rows import AMOUNT, COUNT, FLAG, TEXT, fault, optional
from memskill_cli.utils.shared_database import SharedDatabase

_PATIENCE = 0.01
"""Seconds that a call waits for a lock: enough for the write of another process, and not felt in an event loop."""
_RETRY = 0.1
"""Seconds between two attempts to store replies that wait for a lock."""
_LAST_ATTEMPTS = 3.0
"""Seconds of attempts to store them when the cache is closed."""
_FORMAT = 1
"""``PRAGMA user_version`` of the file: 0 has replies only, 1 also has the bill of each."""


_BILL = {
    **dict.fromkeys(("prompt_tokens", "completion_tokens"), optional(COUNT)),
    **dict.fromkeys(("scope", "owner", "id", "role"), optional(TEXT)),
    "usd": optional(AMOUNT),
    "cut": optional(FLAG),
}
"""What is read of a stored bill."""


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

    :meth:`get` takes about 20 µs, :meth:`put` about 100 µs and, once in a thousand calls, a wait for the disk. Neither
    waits long for a lock: while another process holds one, replies to store are kept in RAM, and a thread stores them
    when the lock is gone. A damaged file is renamed and replaced by a new one. If the disk is full, caching stops and
    the run continues. ``notice`` is called in these cases. ModelError if the file cannot be opened.
    """

    def __init__(self, folder: Path, *, notice: Callable[[str], None] = lambda _: None) -> None:
        self.path = folder / "responses.sqlite"
        self._notice = notice
        self._notified = False
        self._waiting: dict[str, Stored] = {}  # replies that could not be stored yet
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        try:
            self._db = SharedDatabase(
                self.path, _prepare, what="reply cache", notice=notice, patience=_PATIENCE, backup=_backup
            )
        except (OSError, sqlite3.Error) as error:
            raise ModelError(
                f"the reply cache {self.path} cannot be opened: {error}", hint="make the folder writable"
            ) from None

    def get(self, key: str) -> Stored | None:
        """The reply stored under ``key``, or None."""
        if (waiting := self._waiting.get(key)) is not None:
            return waiting
        try:
            row = self._db.read(
                lambda db: db.execute("SELECT text, bill FROM replies WHERE key = ?", (key,)).fetchone(), None
            )
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return None
        return _checked(row) if row else None

    def put(self, key: str, text: str, bill: str = "") -> None:
        """Store a reply and its bill in one transaction. It survives a crash of the process, unless the file is locked
        by another process, which a notice says."""
        reply = Stored(text, bill)
        with self._changed:
            if self._waiting or not self._store(key, reply):
                self._waiting[key] = reply
                self._start_thread()

    def close(self) -> None:
        """Close the file. Replies that wait for a lock are tried once more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._db.close()
        if self._waiting:
            self._notice(f"{len(self._waiting)} replies could not be stored in {self.path}: they may be paid for again")

    def _store(self, key: str, reply: Stored) -> bool:
        """Store a reply now; False if the file is locked."""
        statement = "INSERT OR REPLACE INTO replies (key, text, bill) VALUES (?, ?, ?)"
        try:
            return self._db.write(lambda db: db.execute(statement, (key, *reply)))
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return True

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._store_waiting, name="reply-cache", daemon=True)
            self._thread.start()

    def _store_waiting(self) -> None:
        """Store the waiting replies as soon as the file is free."""
        with self._changed:
            while not self._closing:
                self._changed.wait(_RETRY)
                self._store_all()
            until = time.monotonic() + _LAST_ATTEMPTS
            while self._waiting and time.monotonic() < until:
                self._db.try_now()
                self._store_all()

    def _store_all(self) -> None:
        for key, reply in list(self._waiting.items()):
            if not self._store(key, reply):
                return
            del self._waiting[key]

    def _failed(self, error: Exception) -> None:
        if not self._notified:
            self._notified = True
            self._notice(f"replies are no longer cached ({self.path}: {error}); calls may be paid for again")


def _prepare(db: sqlite3.Connection) -> None:
    """Create the tables, or upgrade a file of format 0. Safe while another process does the same."""
    if db.execute("PRAGMA user_version").fetchone()[0] >= _FORMAT:
        return
    db.execute("BEGIN IMMEDIATE")
    if db.execute("PRAGMA user_version").fetchone()[0] < _FORMAT:
        db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
        db.execute("ALTER TABLE replies ADD COLUMN bill TEXT NOT NULL DEFAULT ''")
        db.execute(f"PRAGMA user_version = {_FORMAT}")
    db.execute("COMMIT")


def _backup(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")


def _checked(row: tuple[Any, Any]) -> Stored | None:
    """A row of the file as a reply; None for values of another kind, so that the model is asked again."""
    text, bill = row
    if not isinstance(text, str) or not isinstance(bill, str):
        return None
    try:
        table = orjson.loads(bill or "{}")
    except orjson.JSONDecodeError:
        table = None
    return Stored(text, bill if isinstance(table, dict) and fault(table, _BILL) is None else "")
