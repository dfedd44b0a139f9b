"""Files in the format of LoCoMo: conversations of two people, with questions about them. Each one becomes a user.

They are read by the reader of the benchmark. ``prepare --dataset locomo`` prepares the benchmark itself, with its
published splits and its own scoring.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.conversations import Conversation, Head, Message, Question, Skipped
from memskill_cli.datasets.locomo import DATASET
from memskill_cli.types import Session, Trace

NAME = DATASET.name
ROLES = ("user", "assistant")
"""Of the person who speaks first, and of all others."""


def recognises(head: Head) -> bool:
    """Whether the first record has ``sample_id`` and ``conversation``."""
    first = next(iter(head.values), None)
    return head.shape == "list" and isinstance(first, dict) and {"sample_id", "conversation"} <= first.keys()


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`. Sessions have the time of their date line."""
    for trace in _traces(path):
        first = trace.sessions[0].turns[0].speaker
        for session in trace.sessions:
            yield _conversation(path, trace, session, first)


def questions(path: Path, skipped: Skipped) -> Iterator[Question]:
    """The scored questions. Their evidence names turns."""
    for trace in _traces(path):
        for query in trace.queries:
            if not query.scored:
                skipped[f"{query.category} questions"] += 1
                continue
            where = f"{path.name}: {query.query_id}"
            yield Question(
                *(trace.trace_id, query.question, query.gold_answers, query.category),
                evidence=query.evidence,
                where=where,
            )


def _traces(path: Path) -> Iterator[Trace]:
    """Each conversation once: the reader gives one or two conversations in every split."""
    seen: set[str] = set()
    for trace in DATASET.read(SourceFile(str(path), path), ReaderCallbacks()):
        if trace.trace_id not in seen:
            seen.add(trace.trace_id)
            yield trace


def _conversation(path: Path, trace: Trace, session: Session, first: str) -> Conversation:
    time = _time(session.date)
    said = (Message(ROLES[turn.speaker != first], turn.text, turn.speaker, time) for turn in session.turns)
    where = f"{path.name}: {trace.trace_id} {session.label}"
    return Conversation(trace.trace_id, session.label, tuple(said), where=where)


def _time(date: str) -> datetime | None:
    """``1:56 pm on 8 May, 2023`` as a time; None if it is none."""
    from dateutil import parser

    try:
        return parser.parse(date, fuzzy=True) if date else None
    except (ValueError, OverflowError):
        return None
