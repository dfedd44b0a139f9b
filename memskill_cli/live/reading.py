"""Reads one span into a user's memory, with the code that training and evaluation use, and commits what it changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

from memskill_cli.agent.controller import SelectSkills
from memskill_cli.datasets.spans import text_of
from memskill_cli.live import replies
from memskill_cli.live.records import Metadata
from memskill_cli.live.spans import Piece
from memskill_cli.live.user_file import (
    MemoryRow,
    MemoryWrite,
    SpanRecord,
    TurnRow,
    UserFile,
    WaitingSession,
    read_metadata,
    read_time,
    to_json,
)
from memskill_cli.live.user_memory import UserMemory, number_of, version_row
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.episode import build_memory
from memskill_cli.skills.bank import SkillBank
from memskill_cli.types import Action, ExecutorResult, MemoryChange, Source, Span, Turn
from memskill_cli.utils.relative_dates import short_date


@dataclass(frozen=True)
class SkillReader:
    """The models and the skills that read spans."""

    context: RolloutContext
    skills: SkillBank
    choose: SelectSkills

    async def read(
        self, user_id: str, file: UserFile, memory: UserMemory, session: WaitingSession, piece: Piece
    ) -> list[MemoryChange]:
        """Read one piece of the text of waiting turns, and commit the result. One call a user at a time.

        Raises ModelError and BudgetExceededError before anything is changed. If the commit fails, ``memory`` is ahead
        of the file and must be thrown away.
        """
        number, place = file.next_number("span"), _place(session, piece)
        text = text_of(as_turns(session.turns))[piece.start : piece.end]
        span = _span(user_id, number, session.session_id, place.turns, text)
        with replies.kept_in(file):
            (step,) = await build_memory(self.context, [span], self.skills, self.choose, memory.bank, evaluating=True)
        # No await from here on: other tasks see the memory before the span, or after it and committed.
        writes = _writes(file, memory, step.execution, session.session_id, place.turns)
        record = _record(number, session, place, _outcome(step.execution))
        next_memory = max([file.next_number("memory"), *(write.row.number + 1 for write in writes)])
        file.commit_span(record, writes, next_memory, keep_turns=self.context.memory.sources)
        return [change for change in step.execution.changes if _is_change(change)]

    def skip(self, file: UserFile, session: WaitingSession, piece: Piece) -> None:
        """Count a piece as read that the model refuses: nothing is written."""
        record = _record(file.next_number("span"), session, _place(session, piece), "refused")
        file.commit_span(record, (), file.next_number("memory"), keep_turns=self.context.memory.sources)


class _Place(NamedTuple):
    """Where a piece lies in the turns of its session."""

    turns: list[TurnRow]
    """The turns that it has a part of."""
    resume: int
    """The position of the turn with which the next span begins."""
    offset: int
    done: int
    """Turns before this position are completely read."""


def as_turns(turns: Sequence[TurnRow]) -> list[Turn]:
    return [Turn(turn.speaker, turn.text) for turn in turns]


def _is_change(change: MemoryChange) -> bool:
    """False for a NOOP, and for a text that a memory says already."""
    return bool(change.item_id) and (change.action is Action.DELETE or change.text != change.before)


def _place(session: WaitingSession, piece: Piece) -> _Place:
    lines = [len(text_of((turn,))) for turn in as_turns(session.turns)]
    starts = list(accumulate((length + 1 for length in lines), initial=0))
    inside = [
        turn
        for turn, start, length in zip(session.turns, starts, lines, strict=False)
        if start < piece.end and start + length > piece.start
    ]
    first = next((i for i in range(len(lines)) if starts[i] + lines[i] > piece.resume), len(lines))
    unread = next((i for i in range(len(lines)) if starts[i] + lines[i] > piece.end), len(lines))
    behind = session.turns[-1].position + 1
    positions = [*(turn.position for turn in session.turns), behind]
    return _Place(inside, positions[first], max(0, piece.resume - starts[first]), positions[unread])


def _record(number: int, session: WaitingSession, place: _Place, outcome: str) -> SpanRecord:
    return SpanRecord(
        number,
        session.number,
        first=place.turns[0].position,
        last=place.turns[-1].position,
        at=datetime.now(UTC).isoformat(),
        outcome=outcome,
        resume=place.resume,
        offset=place.offset,
        done=place.done,
    )


def _span(user_id: str, number: int, session_id: str, turns: Sequence[TurnRow], text: str) -> Span:
    said = read_time(turns[0].said)
    date = f"{said:%H:%M} on {short_date(said.date().isoformat())}"
    sources = tuple(Source(f"{session_id}:{turn.position}", date, turn.speaker, turn.text) for turn in turns)
    return Span(user_id, number, f"[{date}]\n{text}", sources, date)


def _outcome(execution: ExecutorResult) -> str:
    return (
        "unreadable" if execution.unreadable else "cut" if execution.cut else "read" if execution.asked else "skipped"
    )


def _writes(
    file: UserFile, memory: UserMemory, execution: ExecutorResult, session_id: str, turns: Sequence[TurnRow]
) -> list[MemoryWrite]:
    """The memories that the span has changed in the bank, in the order of the changes."""
    metadata: Metadata = {}
    for turn in turns:
        metadata |= read_metadata(turn.metadata)
    touched = dict.fromkeys(change.item_id for change in execution.changes if change.item_id)
    now = datetime.now(UTC).isoformat()
    return [_write(file, memory, item, now, session_id, metadata) for item in touched]


def _write(
    file: UserFile, memory: UserMemory, item_id: str, now: str, session_id: str, metadata: Metadata
) -> MemoryWrite:
    """A memory as the span has left it in the bank, which the file does not know yet."""
    number = number_of(item_id)
    known, versions = file.memory(number), len(file.versions_of(number))
    item = memory.find(item_id)
    new = [version_row(version, now) for version in item.history[versions:]]
    if item_id not in memory.bank:
        assert known is not None  # only a memory that was shown can be deleted
        return MemoryWrite(known._replace(updated=now, deleted=True), versions, new)
    row = MemoryRow(
        number,
        item.text,
        *memory.stored_vectors(item_id),
        created=known.created if known else now,
        updated=now,
        session_id=known.session_id if known else session_id,
        metadata=to_json((read_metadata(known.metadata) if known else {}) | metadata),
    )
    return MemoryWrite(row, versions, new)
