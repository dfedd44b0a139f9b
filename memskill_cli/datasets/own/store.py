"""The sessions of a source while it is read: sorted by user on disk, so that a source may be larger than the memory.

The file is a temporary database of SQLite. It has no name in the file system, so nothing is left if the process is
killed. It is in the folder of SQLITE_TMPDIR or TMPDIR, else /var/tmp.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import orjson

_CACHE_KIB = 48 * 1024
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{_CACHE_KIB};
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, user TEXT, session TEXT, time REAL, date TEXT, place TEXT,
    messages INTEGER, turns INTEGER, chars INTEGER, body BLOB);
CREATE UNIQUE INDEX of_user ON sessions (user, session);
"""


class StoredTurn(NamedTuple):
    """A message that is kept; ``place`` is its number in the session of the file, from 0."""

    speaker: str
    text: str
    place: int


class StoredSession(NamedTuple):
    """A session with the messages that are kept. ``time`` is seconds since 1970, None if the file names no time."""

    user: str
    session: str
    time: float | None
    date: str
    place: str
    """Where it is in the source, for messages."""
    messages: int
    """How many messages it has in the file."""
    turns: tuple[StoredTurn, ...]


class SessionSize(NamedTuple):
    """How long a session is: messages that are kept, and characters of their texts."""

    user: str
    turns: int
    chars: int


class Store:
    """All sessions of a source. Use it in one thread, and close it."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    def put(self, session: StoredSession) -> None:
        """Add a session, or replace the one with the same user and id (which keeps its position)."""
        body = orjson.dumps([tuple(turn) for turn in session.turns])
        chars = sum(len(turn.text) for turn in session.turns)
        self._db.execute(
            "INSERT INTO sessions (user, session, time, date, place, messages, turns, chars, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user, session) DO UPDATE SET time = excluded.time,"
            " date = excluded.date, place = excluded.place, messages = excluded.messages, turns = excluded.turns,"
            " chars = excluded.chars, body = excluded.body",
            (*session[:6], len(session.turns), chars, body),
        )

    def get(self, user: str, session: str) -> StoredSession | None:
        query = "SELECT user, session, time, date, place, messages, body FROM sessions WHERE user = ? AND session = ?"
        row = self._db.execute(query, (user, session)).fetchone()
        return _session(row) if row else None

    def users(self) -> list[str]:
        """All users, in the order in which they are first seen."""
        return [user for (user,) in self._db.execute("SELECT user FROM sessions GROUP BY user ORDER BY min(id)")]

    def sessions_of(self, user: str) -> list[StoredSession]:
        """The sessions of a user that have turns, in order of time.

        A session without a time follows the one before it in the source.
        """
        query = "SELECT user, session, time, date, place, messages, body FROM sessions WHERE user = ? ORDER BY id"
        found: list[tuple[float, StoredSession]] = []
        last = float("-inf")
        for row in self._db.execute(query, (user,)):
            session = _session(row)
            last = last if session.time is None else session.time
            if session.turns:
                found.append((last, session))
        return [session for _, session in sorted(found, key=lambda pair: pair[0])]

    def ids_of(self, user: str) -> dict[str, int]:
        """The session ids of a user with the number of their turns."""
        return dict(self._db.execute("SELECT session, turns FROM sessions WHERE user = ? ORDER BY id", (user,)))

    def owner_of(self, session: str) -> str | None:
        """A user who has a session with this id."""
        row = self._db.execute("SELECT user FROM sessions WHERE session = ? LIMIT 1", (session,)).fetchone()
        return row[0] if row else None

    def sizes(self) -> Iterator[SessionSize]:
        """The sizes of the sessions that have turns, user by user."""
        query = "SELECT user, turns, chars FROM sessions WHERE turns > 0 ORDER BY user, id"
        yield from (SessionSize(*row) for row in self._db.execute(query))

    def texts(self, limit: int) -> Iterator[str]:
        """The text of the first ``limit`` sessions, to measure tokens."""
        for (body,) in self._db.execute("SELECT body FROM sessions WHERE turns > 0 LIMIT ?", (limit,)):
            yield "\n".join(f"{speaker}: {text}" for speaker, text, _ in orjson.loads(body))

    def count(self, what: str = "turns > 0") -> int:
        """The number of sessions for which an SQL condition of ours holds."""
        return int(self._db.execute(f"SELECT count(*) FROM sessions WHERE {what}").fetchone()[0])  # noqa: S608


def _session(row: tuple[str, str, float | None, str, str, int, bytes]) -> StoredSession:
    return StoredSession(*row[:6], tuple(StoredTurn(*turn) for turn in orjson.loads(row[6])))
