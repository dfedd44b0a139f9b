"""The file of one user: turns, the buffer of those that wait, memories with their history, feedback, replies.

It is the source of truth. What a search needs is built from it (:mod:`.user_memory`). All that one span changes is one
transaction (:meth:`UserFile.commit_span`), so a crash neither loses a span nor applies it twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from memskill_cli.live.database import Database
from memskill_cli.live.messages import NewTurn
from memskill_cli.live.records import Metadata

FORMAT = 1
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE,
    turns INTEGER NOT NULL DEFAULT 0,   -- added so far; the position of the next one
    resume INTEGER NOT NULL DEFAULT 0,  -- the position of the turn with which the next span begins
    offset INTEGER NOT NULL DEFAULT 0   -- and the characters of its line that the next span leaves out
);
CREATE TABLE turns (
    number INTEGER PRIMARY KEY AUTOINCREMENT, session INTEGER NOT NULL REFERENCES sessions, position INTEGER NOT NULL,
    message_id TEXT NOT NULL, speaker TEXT NOT NULL, text TEXT NOT NULL, said TEXT NOT NULL, metadata TEXT NOT NULL,
    waits INTEGER NOT NULL DEFAULT 1, UNIQUE (session, position)
);
CREATE INDEX turns_by_message ON turns (session, message_id) WHERE message_id != '';
CREATE INDEX turns_waiting ON turns (number) WHERE waits;
CREATE TABLE source_vectors (
    turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE, part INTEGER NOT NULL, own BLOB NOT NULL,
    window BLOB NOT NULL, PRIMARY KEY (turn, part)
) WITHOUT ROWID;
CREATE TABLE spans (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, first INTEGER NOT NULL,
    last INTEGER NOT NULL, at TEXT NOT NULL, outcome TEXT NOT NULL
);
CREATE TABLE memories (
    number INTEGER PRIMARY KEY, text TEXT NOT NULL, state BLOB NOT NULL, retrieval BLOB NOT NULL,
    created TEXT NOT NULL, updated TEXT NOT NULL, session_id TEXT NOT NULL, metadata TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE versions (
    memory INTEGER NOT NULL REFERENCES memories ON DELETE CASCADE, position INTEGER NOT NULL, action TEXT NOT NULL,
    text TEXT NOT NULL, at TEXT NOT NULL, span INTEGER NOT NULL, skills TEXT NOT NULL, date TEXT NOT NULL,
    speakers TEXT NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;
CREATE TABLE feedback (
    number INTEGER PRIMARY KEY, memory INTEGER NOT NULL REFERENCES memories ON DELETE CASCADE, score REAL NOT NULL,
    at TEXT NOT NULL
);
CREATE TABLE replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, bill TEXT NOT NULL) WITHOUT ROWID;
"""
BY_HAND = -1
"""The span of a version that no span made."""
_TURN = "number, session, position, message_id, speaker, text, said, metadata"


class TurnRow(NamedTuple):
    """A stored turn."""

    number: int
    session: int
    position: int
    message_id: str
    speaker: str
    text: str
    said: str
    metadata: str


class WaitingSession(NamedTuple):
    """A session with turns that wait: where its next span begins, and the turns from there on."""

    number: int
    session_id: str
    offset: int
    turns: list[TurnRow]
    ended: bool
    """Whether turns of another session came after it."""


class VersionRow(NamedTuple):
    """An entry of a memory's history. ``skills`` and ``speakers`` are JSON lists."""

    action: str
    text: str
    at: str
    span: int = BY_HAND
    skills: str = "[]"
    date: str = ""
    speakers: str = "[]"


class MemoryRow(NamedTuple):
    """A memory with its vectors as float32 bytes. ``retrieval`` is empty if it equals ``state``."""

    number: int
    text: str
    state: bytes
    retrieval: bytes
    created: str
    updated: str
    session_id: str
    metadata: str
    deleted: bool = False


class SpanRecord(NamedTuple):
    """What is stored of a span that was read. The next span of its session begins at ``resume``, ``offset``."""

    number: int
    session: int
    first: int
    last: int
    at: str
    outcome: str
    resume: int
    offset: int
    done: int
    """Turns of the session before this position are completely read."""


class MemoryWrite(NamedTuple):
    """A memory as a span or a call leaves it, and the versions that it adds."""

    row: MemoryRow
    known_versions: int
    versions: Sequence[VersionRow]


class UserFile(Database):
    """See the module. Not thread-safe where it says nothing else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, FORMAT)

    # --- facts ---

    def fact(self, name: str, default: str = "") -> str:
        found = self.row("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0]) if found else default

    def set_fact(self, name: str, value: str) -> None:
        self.run(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def next_number(self, what: str) -> int:
        """The number of the next memory or span. Numbers are never used again."""
        return int(self.fact(f"next {what}", "1" if what == "memory" else "0"))

    # --- turns ---

    def add_turns(self, session_id: str, turns: Sequence[NewTurn]) -> int:
        """Store turns in the buffer, in one transaction; how many. A turn whose id the session has is left out."""
        added = 0
        with self.transaction():
            self.run("INSERT INTO sessions (session_id) VALUES (?) ON CONFLICT DO NOTHING", (session_id,))
            found = self.row("SELECT number, turns FROM sessions WHERE session_id = ?", (session_id,))
            assert found is not None
            session, position = found
            for turn in turns:
                if turn.message_id and self._has(session, turn.message_id):
                    continue
                values = (session, position + added, turn.message_id, turn.speaker, turn.text)
                extra = (turn.said.isoformat(), to_json(turn.metadata))
                self.run(
                    "INSERT INTO turns (session, position, message_id, speaker, text, said, metadata) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*values, *extra),
                )
                added += 1
            self.run("UPDATE sessions SET turns = turns + ? WHERE number = ?", (added, session))
        return added

    def _has(self, session: int, message_id: str) -> bool:
        query = "SELECT 1 FROM turns WHERE session = ? AND message_id = ? AND message_id != ''"
        return self.row(query, (session, message_id)) is not None

    def pending(self) -> int:
        """How many turns are not completely read."""
        found = self.row("SELECT count(*) FROM turns WHERE waits")
        return int(found[0]) if found else 0

    def waiting(self) -> list[WaitingSession]:
        """The sessions with turns that wait, in the order of these."""
        query = "SELECT session FROM turns WHERE waits GROUP BY session ORDER BY min(number)"
        newest = self.row("SELECT session FROM turns ORDER BY number DESC LIMIT 1")
        return [self._waiting(session, newest != (session,)) for (session,) in self.rows(query)]

    def _waiting(self, session: int, ended: bool) -> WaitingSession:
        found = self.row("SELECT session_id, resume, offset FROM sessions WHERE number = ?", (session,))
        assert found is not None
        session_id, resume, offset = found
        turns = self.turns("session = ? AND position >= ? ORDER BY position", (session, resume))
        # If the turn at which the next span begins was erased, it begins with the turn after it.
        return WaitingSession(session, session_id, offset if turns[0].position == resume else 0, turns, ended)

    def turns(self, where: str = "1 ORDER BY number", parameters: Sequence[Any] = ()) -> list[TurnRow]:
        """Turns by a condition of this package's code."""
        found = self.rows(f"SELECT {_TURN} FROM turns WHERE {where}", parameters)  # noqa: S608 - no text of a user
        return [TurnRow(*row) for row in found]

    def session_ids(self) -> dict[int, str]:
        return dict(self.rows("SELECT number, session_id FROM sessions"))

    def keep_source_vectors(self, vectors: Mapping[tuple[int, int], tuple[bytes, bytes]]) -> None:
        """Store the vectors (own, window) of parts of turns, by turn and part."""
        with self.transaction():
            for (turn, part), (own, window) in vectors.items():
                # The turn may have been erased while the vectors were computed.
                self.run(
                    "INSERT INTO source_vectors SELECT number, ?, ?, ? FROM turns WHERE number = ? "
                    "ON CONFLICT (turn, part) DO UPDATE SET own = excluded.own, window = excluded.window",
                    (part, own, window, turn),
                )

    def source_vectors(self) -> dict[tuple[int, int], tuple[bytes, bytes]]:
        rows = self.rows("SELECT turn, part, own, window FROM source_vectors")
        return {(turn, part): (own, window) for turn, part, own, window in rows}

    # --- spans and memories ---

    def commit_span(self, span: SpanRecord, writes: Sequence[MemoryWrite], next_memory: int, keep_turns: bool) -> None:
        """Everything that reading a span changes, in one transaction; its replies are not needed any more.

        ``keep_turns``: whether turns that were read stay as sources.
        """
        with self.transaction():
            self.run("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?)", span[:6])
            self.run(
                "UPDATE sessions SET resume = ?, offset = ? WHERE number = ?", (span.resume, span.offset, span.session)
            )
            self.run("UPDATE turns SET waits = 0 WHERE session = ? AND position < ?", (span.session, span.done))
            if not keep_turns:
                before = min(span.done, span.resume)
                self.run("DELETE FROM turns WHERE session = ? AND position < ?", (span.session, before))
            for write in writes:
                self._write(write)
            self.set_fact("next span", str(span.number + 1))
            self.set_fact("next memory", str(next_memory))
            self.run("DELETE FROM replies")

    def write_memory(self, write: MemoryWrite, next_memory: int | None = None) -> None:
        """A memory that was changed by hand."""
        with self.transaction():
            self._write(write)
            if next_memory is not None:
                self.set_fact("next memory", str(next_memory))

    def _write(self, write: MemoryWrite) -> None:
        self.run(
            "INSERT INTO memories VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET "
            "text = excluded.text, state = excluded.state, retrieval = excluded.retrieval, "
            "updated = excluded.updated, metadata = excluded.metadata, deleted = excluded.deleted",
            write.row,
        )
        for position, version in enumerate(write.versions, write.known_versions):
            self.run("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (write.row.number, position, *version))

    def memories(self) -> list[MemoryRow]:
        """All memories that are not deleted, in order of their first writing."""
        return [MemoryRow(*row) for row in self.rows("SELECT * FROM memories WHERE NOT deleted ORDER BY number")]

    def memory(self, number: int) -> MemoryRow | None:
        """A memory, also one that the model has deleted."""
        found = self.row("SELECT * FROM memories WHERE number = ?", (number,))
        return MemoryRow(*found) if found else None

    def versions(self) -> dict[int, list[VersionRow]]:
        """The histories of all memories that are not deleted."""
        found: dict[int, list[VersionRow]] = {}
        query = "SELECT v.* FROM versions v JOIN memories m ON m.number = v.memory WHERE NOT m.deleted"
        for memory, _, *row in self.rows(f"{query} ORDER BY v.memory, v.position"):
            found.setdefault(memory, []).append(VersionRow(*row))
        return found

    def versions_of(self, number: int) -> list[VersionRow]:
        rows = self.rows("SELECT * FROM versions WHERE memory = ? ORDER BY position", (number,))
        return [VersionRow(*row[2:]) for row in rows]

    def sources_of(self, number: int) -> list[tuple[TurnRow, str]]:
        """The turns of the spans that wrote a memory, each with the id of its session, in order of their adding."""
        spans = self.rows(
            "SELECT DISTINCT session_id, session, first, last FROM spans JOIN sessions ON sessions.number = session "
            "WHERE spans.number IN (SELECT span FROM versions WHERE memory = ?)",
            (number,),
        )
        found = {
            (turn, session_id)
            for session_id, *place in spans
            for turn in self.turns("session = ? AND position BETWEEN ? AND ?", place)
        }
        return sorted(found)

    def add_feedback(self, number: int, score: float, at: str) -> None:
        self.run("INSERT INTO feedback (memory, score, at) VALUES (?, ?, ?)", (number, score, at))

    def counts(self) -> dict[str, Any]:
        """Numbers of memories, turns, spans and feedback. ``spans`` are by outcome."""

        def count(table: str) -> int:
            return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - no text of a user

        return {
            "memories": count("memories WHERE NOT deleted"),
            "deleted_by_model": count("memories WHERE deleted"),
            "messages": count("turns"),
            "pending": self.pending(),
            "spans": dict(self.rows("SELECT outcome, count(*) FROM spans GROUP BY outcome ORDER BY outcome")),
            "feedback": count("feedback"),
        }

    def set_vectors(self, number: int, state: bytes, retrieval: bytes) -> None:
        self.run("UPDATE memories SET state = ?, retrieval = ? WHERE number = ?", (state, retrieval, number))

    # --- erasure: callers rewrite the file afterwards ---

    def erase_memory(self, number: int) -> None:
        """Delete a memory, its history, its feedback, and the turns of the spans that wrote it."""
        with self.transaction():
            for turn, _ in self.sources_of(number):
                self._erase_turn(turn)
            self.run("DELETE FROM memories WHERE number = ?", (number,))
            self.run("DELETE FROM replies")

    def _erase_turn(self, turn: TurnRow) -> None:
        # The windows of the turns around it contain it: their vectors are made again.
        self.run(
            "DELETE FROM source_vectors WHERE turn IN (SELECT number FROM turns WHERE session = ?1 AND position IN ("
            "(SELECT max(position) FROM turns WHERE session = ?1 AND position < ?2), "
            "(SELECT min(position) FROM turns WHERE session = ?1 AND position > ?2)))",
            (turn.session, turn.position),
        )
        self.run("DELETE FROM turns WHERE number = ?", (turn.number,))

    def erase_all(self) -> None:
        """Delete all memories, turns and spans. Numbers of memories are not used again."""
        with self.transaction():
            for table in (
                "replies",
                "feedback",
                "versions",
                "memories",
                "spans",
                "source_vectors",
                "turns",
                "sessions",
            ):
                self.run(f"DELETE FROM {table}")  # noqa: S608


def to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def read_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def read_metadata(text: str) -> Metadata:
    found: Metadata = orjson.loads(text)
    return found
