"""Runs of LangSmith as JSON Lines, a JSON list, or the reply of its API (``{"runs": […]}``).

A run is ``{id, run_type, trace_id, parent_run_id, start_time, inputs, outputs, extra, …}``. The metadata ``thread_id``,
``session_id`` or ``conversation_id`` name its thread (the field ``session_id`` is the project).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Skipped
from memskill_cli.datasets.importers.documents import documents
from memskill_cli.datasets.importers.model_calls import Run, conversations, decoded, exchange, messages_of
from memskill_cli.datasets.importers.records import ExportRecord

NAME = "langsmith"
HINT = "see what is expected: docs/importing-conversations.md#langsmith"
_THREAD = ("thread_id", "session_id", "conversation_id")
_MODEL_CALLS = ("llm", "chat_model")


def recognises(head: Head) -> bool:
    """Whether the first record is a run, or a list of runs in ``runs``."""
    first = next(iter(head.values), None)
    if isinstance(first, dict) and isinstance(runs := first.get("runs"), list) and runs:
        first = runs[0]
    return isinstance(first, dict) and "run_type" in first and bool({"inputs", "trace_id"} & first.keys())


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`."""
    yield from conversations(_runs(path, skipped), skipped)


def _runs(path: Path, skipped: Skipped) -> Iterator[Run]:
    seen: set[str] = set()
    for where, value in documents(path):
        listed = value["runs"] if isinstance(value, dict) and isinstance(value.get("runs"), list) else None
        for i, item in enumerate([value] if listed is None else listed):
            record = ExportRecord(where if listed is None else f"{where}: runs[{i}]", item, HINT)
            if run := _run(record, seen, skipped):
                yield run


def _run(record: ExportRecord, seen: set[str], skipped: Skipped) -> Run | None:
    """A run with messages; None for any other one, which is counted."""
    item = record.record
    name = record.text(item, "id")
    trace = record.string(item, "trace_id") or name
    root = not record.string(item, "parent_run_id")
    if name in seen:
        skipped["repeated runs"] += 1
        return None
    seen.add(name)
    if record.string(item, "error"):
        skipped["failed runs"] += 1
        return None
    taken = root or record.text(item, "run_type") in _MODEL_CALLS
    asked = messages_of(record, decoded(item.get("inputs")), "inputs", skipped) if taken else None
    replies = messages_of(record, decoded(item.get("outputs")), "outputs", skipped) if asked else None
    if not asked or not replies:
        skipped["runs without messages"] += 1
        return None
    metadata = _metadata(item)
    thread = next((str(metadata[key]) for key in _THREAD if metadata.get(key)), trace)
    user = str(metadata["user_id"]) if metadata.get("user_id") else None
    time = record.time(item, "start_time", zone=UTC)  # a time that names no zone is in UTC
    return Run(thread, trace, root, user, time, exchange(asked, replies), record.where)


def _metadata(run: dict[str, Any]) -> dict[str, Any]:
    extra = decoded(run.get("extra"))
    metadata = decoded(extra.get("metadata")) if isinstance(extra, dict) else None
    return metadata if isinstance(metadata, dict) else {}
