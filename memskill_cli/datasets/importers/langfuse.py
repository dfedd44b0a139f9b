"""Observations of Langfuse: its export to blob storage (``observations_v2/``) as JSON Lines or a JSON list.

A row is ``{id, trace_id, type, parent_observation_id, start_time, input, output, session_id, user_id, …}``. Input and
output are text, often JSON as text. Times are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.importers.documents import documents
from memskill_cli.datasets.importers.model_calls import Run, conversations, decoded, exchange, messages_of
from memskill_cli.datasets.importers.records import ExportRecord

NAME = "langfuse"
HINT = "see what is expected: docs/importing-conversations.md#langfuse"
_KEYS = {"id", "trace_id", "type", "start_time", "parent_observation_id"}


def recognises(head: Head) -> bool:
    """Whether the first record has the fields that every exported observation has."""
    first = next(iter(head.values), None)
    return isinstance(first, dict) and first.keys() >= _KEYS


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`."""
    yield from conversations(_runs(path, skipped), skipped)


def _runs(path: Path, skipped: Skipped) -> Iterator[Run]:
    seen: set[str] = set()
    for where, value in documents(path):
        if run := _run(ExportRecord(where, value, HINT), seen, skipped):
            yield run


def _run(record: ExportRecord, seen: set[str], skipped: Skipped) -> Run | None:
    """An observation with messages; None for any other one, which is counted."""
    item = record.record
    name = record.text(item, "id")
    trace = record.string(item, "trace_id") or name
    root = not record.string(item, "parent_observation_id")
    kind = record.text(item, "type")
    if name in seen:  # exports of neighbouring hours may both have it
        skipped["repeated observations"] += 1
        return None
    seen.add(name)
    if record.string(item, "level") == "ERROR":
        skipped["failed observations"] += 1
        return None
    taken = root or kind == "GENERATION"
    asked = _messages(record, "input", "user", skipped) if taken else None
    replies = _messages(record, "output", "assistant", skipped) if asked else None
    if not asked or not replies:
        skipped["observations without messages"] += 1
        return None
    thread, user = record.string(item, "session_id") or trace, record.string(item, "user_id") or None
    time = record.time(item, "start_time", zone=UTC)
    return Run(thread, trace, root, user, time, exchange(asked, replies), record.where)


def _messages(record: ExportRecord, field: str, role: str, skipped: Skipped) -> list[Message] | None:
    """The messages in a field. Plain text is one message of ``role``."""
    value: Any = decoded(record.record.get(field))
    if isinstance(value, str):
        return [Message(role, value)] if value.strip() else None
    return messages_of(record, value, field, skipped)
