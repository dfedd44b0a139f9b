"""What is stored, as callers see it, and the ids of memories: ``m<number of the user>-<number of the memory>``."""

from __future__ import annotations

import re
from typing import Literal

import orjson

from memskill_cli.errors import MemoryBankError
from memskill_cli.live.records import Change, Event, Found, SourceTurn, Version
from memskill_cli.live.user_file import (
    BY_HAND,
    MemoryRow,
    TurnRow,
    UserFile,
    VersionRow,
    read_metadata,
    read_time,
)
from memskill_cli.live.user_memory import number_of
from memskill_cli.types import Action, MemoryChange

_ID = re.compile(r"m([1-9]\d{0,17})-([1-9]\d{0,17})", re.ASCII)
_EVENTS: dict[Action, Event] = {Action.INSERT: "insert", Action.UPDATE: "update", Action.DELETE: "delete"}


class UnknownMemoryError(MemoryBankError):
    """There is no memory with this id, or it is another user's."""

    def __init__(self, memory_id: object) -> None:
        super().__init__(f"there is no memory {str(memory_id)[:50]!r}", hint="search and get_all return ids")


def public_id(user: int, number: int) -> str:
    return f"m{user}-{number}"


def parse_id(memory_id: object) -> tuple[int, int]:
    """The numbers of the user and of the memory. UnknownMemoryError if it is no id."""
    match = _ID.fullmatch(memory_id) if isinstance(memory_id, str) else None
    if match is None:
        raise UnknownMemoryError(memory_id)
    return int(match[1]), int(match[2])


def to_found(row: MemoryRow, public_id: str, score: float, file: UserFile) -> Found:
    """A memory as callers see it."""
    return Found(
        public_id,
        row.text,
        score,
        read_time(row.created),
        read_time(row.updated),
        read_metadata(row.metadata),
        [source_turn(turn, session_id) for turn, session_id in file.sources_of(row.number)],
        row.session_id,
    )


def source_turn(turn: TurnRow, session_id: str) -> SourceTurn:
    name = turn.message_id or f"{session_id}:{turn.position}"
    return SourceTurn(name, session_id, turn.speaker, turn.text, read_time(turn.said), read_metadata(turn.metadata))


def to_change(user: int, change: MemoryChange) -> Change:
    event = _EVENTS[change.action]
    text = change.before if event == "delete" else change.text
    return Change(public_id(user, number_of(change.item_id)), event, text)


def to_version(row: VersionRow) -> Version:
    by: Literal["reader", "hand"] = "hand" if row.span == BY_HAND else "reader"
    return Version(_EVENTS[Action(row.action)], row.text, read_time(row.at), by, orjson.loads(row.skills))
