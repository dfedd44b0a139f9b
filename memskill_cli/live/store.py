"""The folder of a store: who its users are, which encoder made its vectors, what its model calls cost.

::

    mem/
      store.sqlite           users, encoders, settings, totals of model calls; no message and no memory
      users/00/000001.sqlite all that belongs to one user (:mod:`.user_file`)
      .lock .owner           one process at a time owns the folder

Each user has a file: another user's data cannot be found in it, ``forget`` removes it as a whole, and erasing a memory
rewrites no other user's data. Chroma, which stores the memories of runs, is not used here: its write-ahead log and its
indexes keep deleted texts, its search is approximate, and it would be a second copy that a crash can make differ. A
search index is built in RAM from these files instead (:mod:`.user_memory`).

An erasure that a crash interrupts is completed when the store is opened again: the user is marked before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.errors import MemoryBankError
from memskill_cli.live import database
from memskill_cli.live.database import Database
from memskill_cli.live.user_file import UserFile
from memskill_cli.utils.locks import locked

FORMAT = 1
FILE = "store.sqlite"
REINDEX = "memskill memory reindex --memory"
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE users (
    number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL UNIQUE, created TEXT NOT NULL,
    waits INTEGER NOT NULL DEFAULT 0, erasing INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE usage (
    role TEXT NOT NULL, model TEXT NOT NULL, calls INTEGER NOT NULL, cached INTEGER NOT NULL, failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (role, model)
) WITHOUT ROWID;
"""


class Erasing(IntEnum):
    """What is being erased of a user."""

    NOTHING = 0
    PARTS = 1
    ALL = 2


class User(NamedTuple):
    """A user of the store. ``number`` is never used again for another one."""

    number: int
    user_id: str


class Store:
    """The users of an open store. MemoryBankError if a file cannot be used. See :func:`opened`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(folder / FILE, _SCHEMA, FORMAT)

    def close(self) -> None:
        self.database.close()

    def fact(self, name: str) -> str:
        """A fact of the store, "" if it is not known."""
        found = self.database.row("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0]) if found else ""

    def set_facts(self, facts: Mapping[str, str]) -> None:
        with self.database.transaction():
            for item in facts.items():
                self.database.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", item)

    # --- users ---

    def users(self) -> list[User]:
        """All users, in the order in which they came."""
        rows = self.database.rows(
            "SELECT number, user_id FROM users WHERE erasing != ? ORDER BY number", (Erasing.ALL,)
        )
        return [User(*row) for row in rows]

    def find(self, user_id: str) -> User | None:
        found = self.database.row(
            "SELECT number, user_id FROM users WHERE user_id = ? AND erasing != ?", (user_id, Erasing.ALL)
        )
        return User(*found) if found else None

    def numbered(self, number: int) -> User | None:
        found = self.database.row(
            "SELECT number, user_id FROM users WHERE number = ? AND erasing != ?", (number, Erasing.ALL)
        )
        return User(*found) if found else None

    def find_or_add(self, user_id: str) -> User:
        if (found := self.find(user_id)) is not None:
            return found
        now = datetime.now(UTC).isoformat()
        return User(self.database.run("INSERT INTO users (user_id, created) VALUES (?, ?)", (user_id, now)), user_id)

    def open_file(self, user: User) -> UserFile:
        return UserFile(self.path_of(user))

    def path_of(self, user: User) -> Path:
        return self.folder / "users" / f"{user.number % 256:02x}" / f"{user.number:06d}.sqlite"

    def set_waiting(self, user: User, waits: bool) -> None:
        """Note whether turns of the user may wait, so that :meth:`waiting` need not open every file."""
        self.database.run("UPDATE users SET waits = ? WHERE number = ? AND waits != ?", (waits, user.number, waits))

    def waiting(self) -> list[User]:
        rows = self.database.rows(
            "SELECT number, user_id FROM users WHERE waits AND erasing != ? ORDER BY number", (Erasing.ALL,)
        )
        return [User(*row) for row in rows]

    # --- erasure ---

    @contextmanager
    def erasing(self, user: User) -> Iterator[None]:
        """Mark that parts of a user's file are erased in the block, which ends with a rewrite of the file."""
        self._mark(user, Erasing.PARTS)
        yield
        self._mark(user, Erasing.NOTHING)

    def forget(self, user: User) -> None:
        """Remove a user, whose file must be closed."""
        self._mark(user, Erasing.ALL)
        self._finish_forgetting(user)

    def finish_erasures(self) -> None:
        """Complete what a crash has interrupted."""
        rows = self.database.rows("SELECT number, user_id, erasing FROM users WHERE erasing != 0")
        for number, user_id, erasing in rows:
            user = User(number, user_id)
            if erasing == Erasing.ALL:
                self._finish_forgetting(user)
            else:
                file = self.open_file(user)
                file.rewrite()
                file.close()
                self._mark(user, Erasing.NOTHING)
        if self.fact("rewrite"):
            self._rewrite()

    def _mark(self, user: User, erasing: Erasing) -> None:
        self.database.run("UPDATE users SET erasing = ? WHERE number = ?", (erasing, user.number))

    def _finish_forgetting(self, user: User) -> None:
        database.unlink(self.path_of(user))
        with self.database.transaction():
            self.database.run("DELETE FROM users WHERE number = ?", (user.number,))
            self.database.run("INSERT OR REPLACE INTO facts VALUES ('rewrite', '1')")
        self._rewrite()

    def _rewrite(self) -> None:
        """The user id is erased too."""
        self.database.rewrite()
        self.database.run("DELETE FROM facts WHERE name = 'rewrite'")

    # --- model calls ---

    def add_usage(self, bill: Mapping[str, Any]) -> None:
        """Add one call to the totals."""
        values = [
            bill.get("role", ""),
            bill.get("model", ""),
            int(bool(bill.get("cached"))),
            int(str(bill.get("outcome", "")).startswith("error")),
            bill.get("prompt_tokens") or 0,
            bill.get("completion_tokens") or 0,
            bill.get("usd") or 0.0,
        ]
        self.database.run(
            "INSERT INTO usage VALUES (?, ?, 1, ?, ?, ?, ?, ?) ON CONFLICT (role, model) DO UPDATE SET "
            "calls = calls + 1, cached = cached + excluded.cached, failed = failed + excluded.failed, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens, usd = usd + excluded.usd",
            values,
        )

    def usage(self) -> list[dict[str, Any]]:
        """The totals of model calls, by role and model."""
        names = ("role", "model", "calls", "cached", "failed", "prompt_tokens", "completion_tokens", "usd")
        rows = self.database.rows("SELECT * FROM usage ORDER BY role, model")
        return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def opened(folder: Path, *, create: bool = True) -> Iterator[Store]:
    """Own the store in ``folder`` during the block, and complete interrupted erasures first.

    RunLockedError with the pid if another process owns it; MemoryBankError if there is none and ``create`` is False.
    """
    if not create and not (folder / FILE).is_file():
        raise MemoryBankError(
            f"there is no memory in {folder}", hint=f'memskill memory add --memory {folder} --user USER "…" makes one'
        )
    if folder.exists() and not folder.is_dir():
        raise MemoryBankError(f"{folder} is not a folder", hint="give the folder of a memory store")
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)  # what is in it is not encrypted
    with locked(folder, f"the memory in {folder}"):
        store = Store(folder)
        try:
            store.finish_erasures()
            yield store
        finally:
            store.close()
