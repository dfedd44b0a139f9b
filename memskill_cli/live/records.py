"""What the memory of an agent returns. Times are aware, in UTC unless they came with a message."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Event = Literal["insert", "update", "delete"]
Metadata = dict[str, Any]
"""What a caller attaches to messages: any JSON."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a memory. ``text`` is the text after it; after a ``delete``, the one that was deleted."""

    id: str
    event: Event
    text: str


@dataclass(frozen=True, slots=True)
class AddResult:
    """What :meth:`add` and :meth:`flush` did."""

    changes: list[Change]
    """Changes of memories, in their order; empty if no span was complete, or if nothing was worth remembering."""
    pending: int
    """Turns of the user that wait in the buffer for the rest of their span."""


@dataclass(frozen=True, slots=True)
class SourceTurn:
    """A message as it was said."""

    id: str
    """The caller's id of the message; where it had none, the session and the number of the message in it."""
    session_id: str
    speaker: str
    text: str
    said_at: datetime
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A memory."""

    id: str
    text: str
    score: float
    """How well it fits the query: higher is better, and only the order has a meaning. 0 if nothing was searched for."""
    created_at: datetime
    updated_at: datetime
    metadata: Metadata
    """That of the messages it was written from; a later message's value counts."""
    sources: list[SourceTurn]
    """The messages it was written from, as far as they are kept."""
    session_id: str = ""
    """The session from which it was first written."""


@dataclass(frozen=True, slots=True)
class Version:
    """One entry of the history of a memory."""

    event: Event
    text: str
    """The text after the event; "" after a deletion."""
    at: datetime
    by: Literal["reader", "hand"]
    """``reader``: the model, from a span. ``hand``: a call of ``update``, or an import."""
    skills: list[str]
    """The skills that were selected for the span."""
