"""SQLite files of a store: opened in one way, changed in transactions, and rewritten when something is erased.

Each file has a write-ahead log, ``synchronous=FULL`` (a commit is on the disk when it returns) and
``secure_delete``. The latter alone does not erase: when SQLite splits a page, it can leave copies of rows in the unused
part of a page. So erasing ends with ``VACUUM``, which writes all pages anew (:meth:`Database.rewrite`). That takes a
time in proportion to the file; it is a reason why each user has a file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memskill_cli.errors import MemoryBankError

_PRAGMAS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
PRAGMA foreign_keys = ON;
"""
UPGRADE = "pip install -U memskill"


class Database:
    """One SQLite file with the tables of ``schema``, created if it is missing. One connection, usable by all threads.

    MemoryBankError if the file is damaged, is of a newer ``version``, or cannot be read or written. Texts are only
    passed as parameters, never as a part of a statement.
    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self.path = path
        self.closed = False
        self._lock = threading.RLock()  # a transaction, or one statement of another thread
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(schema, version)
            except BaseException:
                self._connection.close()
                raise

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._connection.execute(query, parameters).fetchall()

    def row(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        found = self.rows(query, parameters)
        return found[0] if found else None

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Execute one statement; the id of an inserted row."""
        with self._lock, self._errors():
            return self._connection.execute(statement, parameters).lastrowid or 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements of the block, or none of them. Do not await inside it."""
        with self._lock:
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rewrite(self) -> None:
        """Write all pages anew and empty the log, so that nothing is left of deleted rows."""
        self.run("VACUUM")
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.closed = True
        with self._lock, self._errors():
            self._connection.close()

    def _prepare(self, schema: str, version: int) -> None:
        self._connection.executescript(_PRAGMAS)
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        if found > version:
            raise MemoryBankError(
                f"{self.path} has format {found}, but this version reads format {version}", hint=UPGRADE
            )
        if not found:  # the version is a part of the transaction: a file has all tables or none
            self._connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version:d}; COMMIT;")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as one line. They name tables and files, never values."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MemoryBankError(
                f"{self.path}: {error}", hint="check that the folder is writable and the disk is not full"
            ) from None
        except sqlite3.IntegrityError as error:
            raise MemoryBankError(f"{self.path}: the data contradict each other: {error}") from None
        except sqlite3.DatabaseError as error:
            raise MemoryBankError(
                f"{self.path} is damaged: {error}", hint="restore the folder of the store from a backup"
            ) from None


def unlink(path: Path) -> None:
    """Remove a closed database with its log."""
    for suffix in ("-wal", "-shm", ""):  # the log first: without the file nothing would name it
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """The bytes of a database with its log, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())
