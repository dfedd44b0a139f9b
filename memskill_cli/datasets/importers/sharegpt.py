"""ShareGPT, a form of many open chat datasets: ``{"id", "conversations": [{"from": "human", "value": "…"}, …]}``.

A file is a JSON list of such records, or JSON Lines. Some datasets write ``role`` and ``content`` for ``from`` and
``value``, and some have the system prompt in a field ``system``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.importers.documents import documents
from memskill_cli.datasets.importers.parts import content_text
from memskill_cli.datasets.importers.records import ExportRecord, shown
from memskill_cli.datasets.json_records import kind

NAME = "sharegpt"
HINT = "see the format: docs/importing-conversations.md#sharegpt"
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("function_call", "observation", "tool", "function", "function_response"), "tool"),
    "system": "system",
}
"""Roles by the value of ``from``. What a model writes to a tool is no speech, so it has the role of tools."""
_MEDIA = re.compile(r"<(image|audio|video)>")


def recognises(head: Head) -> bool:
    """Whether the first record has ``conversations``, a list of objects with ``from`` (or ``role``)."""
    first = next(iter(head.values), None)
    turns = first.get("conversations") if isinstance(first, dict) else None
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(turn, dict) and ("from" in turn or "role" in turn) for turn in turns[:3])


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`. Records without an id are known by their position."""
    for position, (where, value) in enumerate(documents(path)):
        yield _conversation(ExportRecord(where, value, HINT), position, skipped)


def _conversation(record: ExportRecord, position: int, skipped: Skipped) -> Conversation:
    turns = record.field(record.record, "conversations", list)
    system = record.string(record.record, "system")
    said = [Message("system", system)] if system else []
    said += [_message(record, turn, f"conversations[{i}]", skipped) for i, turn in enumerate(turns)]
    given = record.record.get("id")
    name = "" if given is None or given == "" else record.answer(given, "id")
    return Conversation(None, name or str(position), tuple(said), {"id": name} if name else {}, record.where)


def _message(record: ExportRecord, turn: Any, place: str, skipped: Skipped) -> Message:
    fields = record.expect(turn, dict, place)
    speaker, text = ("from", "value") if "from" in fields else ("role", "content")
    given = record.text(fields, speaker, f"{place}.")
    role = ROLES.get(given.lower())
    if role is None:
        near = difflib.get_close_matches(given.lower(), ROLES, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(ROLES)}"
        record.fail(f"{place}.{speaker} is {shown(given)}; {meant}")
    if text not in fields:
        record.fail(f"{place}.{text} is missing")
    return Message(role, _text(record, fields[text], role, f"{place}.{text}", skipped))


def _text(record: ExportRecord, value: Any, role: str, place: str, skipped: Skipped) -> str:
    if role == "tool" and isinstance(value, dict | list):  # the arguments of a call, or its result
        try:
            return orjson.dumps(value).decode()
        except orjson.JSONEncodeError:
            record.fail(f"{place} is nested too deep")
    if value is not None and not isinstance(value, str | list):
        record.fail(f"{place} is {kind(value)}, expected text")
    return _MEDIA.sub(r"[\1]", content_text(record, value, place, skipped))
