"""One SQLite file that several processes share, for caches: whatever happens to the file, the command goes on.

* A file that another process has locked is waited for a short time only. Then the command goes on without it, says so
  once, and tries again later.
* A damaged file is renamed with a notice, and a new one is made. If two processes find the damage at once, one of them
  replaces the file and the other one uses the new file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")
Connection = sqlite3.Connection

OPEN_PATIENCE = 5.0
"""Seconds that opening the file waits for other processes."""
REST = 30.0
"""Seconds without the file, after it was locked for too long."""
GRACE = 5.0
"""Seconds of a lock without a gap after which the file is left alone for a time."""
_POLL = 0.001
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Side:
    """Reading or writing: since when the file is locked (monotonic seconds, 0: it is not), and how long it is left."""

    def __init__(self) -> None:
        self.locked_since = 0.0
        self.away_until = 0.0


class SharedDatabase:
    """A file with a write-ahead log; ``path`` None: a database in RAM.

    ``prepare`` makes the tables, also if they exist. ``what`` names the cache in notices, and ``patience`` is how many
    seconds a call waits for a lock: hundredths in an event loop. Errors other than a lock and damage are raised, as
    sqlite3.Error or OSError. Threads may share it.
    """

    def __init__(
        self,
        path: Path | None,
        prepare: Callable[[Connection], None],
        *,
        what: str,
        notice: Callable[[str], None],
        patience: float,
        backup: Callable[[Path], Path],
    ) -> None:
        self.path = path
        self._prepare, self._what, self._notice, self._patience, self._backup = prepare, what, notice, patience, backup
        self._write_lock, self._open_lock = threading.Lock(), threading.RLock()
        self._reading, self._writing = _Side(), _Side()
        self._said = self._closed = False
        self._connections: tuple[Connection, Connection] | None = None
        self._inode = 0
        self._open(OPEN_PATIENCE)

    def read(self, work: Callable[[Connection], T], default: T) -> T:
        """The result of ``work``; ``default`` while the file is locked."""
        return self._do(self._reading, lambda connections: work(connections[0]), default)

    def write(self, work: Callable[[Connection], object]) -> bool:
        """Do ``work``; whether it was done. It is not done while the file is locked."""

        def locked(connections: tuple[Connection, Connection]) -> bool:
            with self._write_lock:
                work(connections[1])
            return True

        return self._do(self._writing, locked, default=False)

    def try_now(self) -> None:
        """Let the next call try the file, also if it was locked a short time ago."""
        self._reading.away_until = self._writing.away_until = 0.0

    def close(self) -> None:
        self._closed = True
        with self._open_lock:
            self._drop()

    def _do(self, side: _Side, work: Callable[[tuple[Connection, Connection]], T], default: T) -> T:
        until = time.monotonic() + self._patience
        healed = False
        while time.monotonic() >= side.away_until and not self._closed:
            try:
                connections = self._current()
                if connections is None:
                    return default
                result = work(connections)
            except sqlite3.DatabaseError as error:
                if is_damaged(error) and self.path is not None and not healed:
                    healed = True
                    self._heal(error)
                elif not is_locked(error):
                    raise
                else:
                    side.locked_since = side.locked_since or time.monotonic()
                    if time.monotonic() >= until:
                        self._leave(side)
                        return default
                    time.sleep(_POLL)
            else:
                side.locked_since = 0.0
                return result
        return default

    def _current(self) -> tuple[Connection, Connection] | None:
        """The connections to the file that is now at the path; None while it cannot be opened because of a lock."""
        if self._connections is None or (self.path is not None and _inode(self.path) != self._inode):
            self._open(self._patience)
        return self._connections

    def _leave(self, side: _Side) -> None:
        """Go on without the file, and without trying it for a time if it has been locked for long."""
        now = time.monotonic()
        if now - side.locked_since < GRACE:
            return  # others are writing as well
        side.away_until = now + REST
        if not self._said:
            self._said = True
            self._notice(
                f"the {self._what} {self.path} is locked by another process: going on without it for now, "
                f"and trying again every {REST:g} s"
            )

    def _open(self, patience: float) -> None:
        with self._open_lock:
            self._drop()
            if self.path is None:
                connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._prepare(connection)
                self._connections = connection, connection
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            until = time.monotonic() + patience
            while self._connections is None:
                try:
                    # SQLite does not wait when two processes enable the write-ahead log of a new file at once.
                    with FileLock(f"{self.path}.lock", timeout=patience, poll_interval=0.01):
                        self._connect(self.path)
                except (Timeout, sqlite3.DatabaseError) as error:
                    if isinstance(error, sqlite3.DatabaseError) and is_damaged(error):
                        self._heal(error)
                    elif isinstance(error, sqlite3.DatabaseError) and not is_locked(error):
                        raise
                    elif time.monotonic() >= until:
                        self._reading.locked_since = self._reading.locked_since or until - OPEN_PATIENCE
                        self._leave(self._reading)
                        return
                    else:
                        time.sleep(_POLL)

    def _connect(self, path: Path) -> None:
        made: list[Connection] = []
        try:
            for _ in range(2):  # one to read and one to write, so that readers never wait for writers
                made.append(sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False))
            writer = made[1]
            with contextlib.closing(writer.execute("PRAGMA journal_mode = WAL")):
                pass
            writer.execute("PRAGMA synchronous = NORMAL")
            self._prepare(writer)
        except BaseException:
            for connection in made:
                connection.close()
            raise
        self._inode = _inode(path)
        self._connections = made[0], made[1]

    def _drop(self) -> None:
        with self._write_lock:
            for connection in set(self._connections or ()):
                connection.close()
            self._connections = None

    def _heal(self, error: sqlite3.Error) -> None:
        """Replace the damaged file, unless another process has done so since it was opened; then open the new one."""
        assert self.path is not None
        with self._open_lock:
            opened = self._inode if self._connections is not None else None
            self._drop()
            backup = None
            with contextlib.suppress(Timeout), FileLock(f"{self.path}.lock", timeout=OPEN_PATIENCE, poll_interval=0.01):
                now = _inode(self.path)
                if now and opened in (None, now) and self._is_damaged():
                    backup = self._backup(self.path)
                    os.replace(self.path, backup)
                    for suffix in ("-wal", "-shm"):
                        self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            if self._connections is None:
                self._open(self._patience)
            if backup is not None:
                self._notice(
                    f"the {self._what} was damaged ({error}): it was renamed to {backup} and a new one was created"
                )

    def _is_damaged(self) -> bool:
        """Whether the file at the path is damaged. It is asked with the file's lock, before the file is renamed."""
        assert self.path is not None
        with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as connection:
            try:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
            except sqlite3.DatabaseError as error:
                return is_damaged(error)


def is_damaged(error: sqlite3.DatabaseError) -> bool:
    """Whether ``error`` says that the file is damaged or no database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def is_locked(error: sqlite3.DatabaseError) -> bool:
    """Whether ``error`` says that another process holds a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED


def _inode(path: Path) -> int:
    """The inode of the file at ``path``; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
