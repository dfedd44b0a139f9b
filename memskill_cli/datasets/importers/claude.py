"""The export of Claude: a zip archive with ``conversations.json``, or that file.

It is a list of conversations ``{uuid, name, created_at, account, chat_messages}``; a message has ``sender`` (human or
assistant), ``content`` (a list of blocks), ``text`` (all blocks as one text), ``attachments`` and ``files``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.importers.documents import any_record, documents
from memskill_cli.datasets.importers.parts import content_text, file_placeholder, joined
from memskill_cli.datasets.importers.records import OWNER, ExportRecord, dated, shown
from memskill_cli.datasets.message_content import epoch

NAME = "claude"
HINT = "see what is expected: docs/importing-conversations.md#claude"
ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}
_FILES = re.compile(r"(?:(?!__MACOSX).*/)?conversations(?:-\d+)?\.json")
_FIRST = "00000000-0000-4000-8000-000000000000"
"""What the export names as the parent of a first message."""


def recognises(head: Head) -> bool:
    """Whether a record at the beginning has ``chat_messages``."""
    return any_record(head, _FILES, "chat_messages")


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`. A user is an account."""
    for position, (where, value) in enumerate(documents(path, _FILES)):
        yield _conversation(ExportRecord(where, value, HINT), f"{path.name}-{position}", skipped)


def _conversation(record: ExportRecord, default_id: str, skipped: Skipped) -> Conversation:
    item = record.record
    record.field(item, "chat_messages", list)
    everything = [(f"chat_messages[{i}]", m) for i, m in enumerate(record.objects(item, "chat_messages"))]
    branch = _branch(record, everything)
    if others := len(everything) - len(branch):
        skipped["messages of other branches"] += others
    messages = [_message(record, place, message, skipped) for place, message in branch]
    account = record.optional(item, "account", dict) or {}
    given = record.string(item, "uuid")
    metadata = {"id": given, "title": record.string(item, "name"), "model": record.string(item, "model")}
    return Conversation(
        record.string(account, "uuid", "account.") or OWNER,
        given or default_id,
        dated(messages, record.time(item, "created_at")),
        {name: value for name, value in metadata.items() if value},
        record.where,
    )


def _branch(record: ExportRecord, messages: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The messages from the first to the current one, without those that were edited or answered again.

    All messages in the order of the file if the export does not name a parent for each of them (older exports).
    """
    by_id = {record.string(message, "uuid", f"{place}."): (place, message) for place, message in messages}
    parents = [record.string(message, "parent_message_uuid", f"{place}.") for place, message in messages]
    if not messages or len(by_id) < len(messages) or not all(parent == _FIRST or parent in by_id for parent in parents):
        return messages
    branch: dict[str, tuple[str, dict[str, Any]]] = {}
    key = _current(record, messages)
    while key != _FIRST:
        if key in branch:
            record.fail(f"{branch[key][0]}: the parents of messages form a circle")
        if key not in by_id:
            record.fail(f"current_leaf_message_uuid names {shown(key)}, which is no message")
        branch[key] = by_id[key]
        key = record.string(branch[key][1], "parent_message_uuid")
    return list(reversed(branch.values()))


def _current(record: ExportRecord, messages: list[tuple[str, dict[str, Any]]]) -> str:
    """The id of the message that is shown last; if the export does not name it, of the newest one."""
    if named := record.string(record.record, "current_leaf_message_uuid"):
        return named
    times = [record.time(message, "created_at", f"{place}.") for place, message in messages]
    clocks = [epoch(time) if time else -math.inf for time in times]
    newest = max(range(len(messages)), key=lambda i: (clocks[i], i))
    return record.string(messages[newest][1], "uuid")


def _message(record: ExportRecord, place: str, message: dict[str, Any], skipped: Skipped) -> Message:
    sender = record.text(message, "sender", f"{place}.")
    if sender not in ROLES:
        record.fail(f"{place}.sender is {shown(sender)}, expected human or assistant")
    # text has a sentence "This block is not supported…" for each call of a tool, so it is used only without blocks.
    # text has a sentence "This block is not supported…" for each call of a tool, so it is used only without blocks.
    blocks = message.get("content") or record.string(message, "text", f"{place}.")
    text = content_text(record, blocks, f"{place}.content", skipped)
    texts = [text, *_attached(record, place, message)]
    return Message(ROLES[sender], joined(texts), None, record.time(message, "created_at", f"{place}."))


def _attached(record: ExportRecord, place: str, message: dict[str, Any]) -> Iterator[str]:
    """The texts that were pasted, which are attachments without a name, and the names of files."""
    seen: set[str] = set()
    for field in ("attachments", "files"):
        for i, file in enumerate(record.objects(message, field, f"{place}.")):
            prefix = f"{place}.{field}[{i}]."
            name = record.string(file, "file_name", prefix)
            pasted = "" if name else record.string(file, "extracted_content", prefix)
            if pasted or name not in seen:
                yield pasted or file_placeholder(name)
            seen.add(name)
