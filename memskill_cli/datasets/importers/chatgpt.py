"""The export of ChatGPT: a zip archive with ``conversations.json`` or ``conversations-000.json`` etc., or such a file.

Each conversation is a tree: ``mapping`` has a node for each message, with its parent. The conversation as it is shown
goes from ``current_node`` back to the root; other branches are answers made again and messages that were edited.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.importers.chatgpt_content import message_text
from memskill_cli.datasets.importers.documents import any_record, documents
from memskill_cli.datasets.importers.records import OWNER, ExportRecord, dated, shown
from memskill_cli.datasets.message_content import epoch

NAME = "chatgpt"
HINT = "see what is expected: docs/importing-conversations.md#chatgpt"
ROLES = ("user", "assistant", "system", "tool")
_FILES = re.compile(r"(?:(?!__MACOSX).*/)?conversations(?:-\d+)?\.json")


def recognises(head: Head) -> bool:
    """Whether a record at the beginning has ``mapping``."""
    return any_record(head, _FILES, "mapping")


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`. All conversations are those of one user."""
    for position, (where, value) in enumerate(documents(path, _FILES)):
        yield _conversation(ExportRecord(where, value, HINT), f"{path.name}-{position}", skipped)


def _conversation(record: ExportRecord, default_id: str, skipped: Skipped) -> Conversation:
    item = record.record
    mapping = record.field(item, "mapping", dict)
    branch = _branch(record, mapping)
    given = record.string(item, "conversation_id") or record.string(item, "id")
    if others := _messages_in(mapping) - _messages_in(branch):
        skipped["messages of other branches"] += others
    messages = [message for key, node in branch.items() if (message := _message(record, key, node, skipped))]
    metadata = {
        "id": given,
        "title": record.string(item, "title"),
        "model": record.string(item, "default_model_slug"),
    }
    return Conversation(
        OWNER,
        given or default_id,
        dated(messages, record.time(item, "create_time")),
        {name: value for name, value in metadata.items() if value},
        record.where,
    )


def _branch(record: ExportRecord, mapping: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes from the root to ``current_node``, or to the newest message if the export names no such node."""
    nodes: dict[str, dict[str, Any]] = {}
    key = record.optional(record.record, "current_node", str) or _newest(record, mapping)
    named_by = "current_node"
    while key is not None:
        if key not in mapping:
            record.fail(f"{named_by} names {shown(key)}, which is no node of mapping")
        if key in nodes:
            record.fail(f"{named_by} names {shown(key)}: the parents of nodes form a circle")
        place = f"mapping[{shown(key)}]"
        nodes[key] = record.expect(mapping[key], dict, place)
        named_by, key = f"{place}.parent", record.optional(nodes[key], "parent", str, f"{place}.")
    return dict(reversed(nodes.items()))


def _newest(record: ExportRecord, mapping: dict[str, Any]) -> str | None:
    """The node with the latest message; None if there is no message."""
    newest, found = -math.inf, None
    for key, node in mapping.items():
        place = f"mapping[{shown(key)}]."
        message = record.optional(record.expect(node, dict, place[:-1]), "message", dict, place)
        if message is not None:
            time = record.time(message, "create_time", f"{place}message.")
            clock = epoch(time) if time else -math.inf
            newest, found = (clock, key) if found is None or clock >= newest else (newest, found)
    return found


def _messages_in(nodes: dict[str, Any]) -> int:
    return sum(isinstance(node, dict) and bool(node.get("message")) for node in nodes.values())


def _message(record: ExportRecord, key: str, node: dict[str, Any], skipped: Skipped) -> Message | None:
    """The message of a node; None if it has none, or if it is left out."""
    place = f"mapping[{shown(key)}].message"
    message = record.optional(node, "message", dict, f"{place[: -len('message')]}")
    if message is None:
        return None
    author = record.field(message, "author", dict, f"{place}.")
    role = record.text(author, "role", f"{place}.author.")
    if left_out := _left_out(record, message, role, place):
        skipped[left_out] += 1
        return None
    text = message_text(record, message, f"{place}.", skipped)
    if text is None:
        return None
    name = record.string(author, "name", f"{place}.author.")
    return Message(role, text, name or None, record.time(message, "create_time", f"{place}."))


def _left_out(record: ExportRecord, message: dict[str, Any], role: str, place: str) -> str:
    """The kind of :data:`Skipped` of a message by all but its content; "" if it is kept."""
    metadata = record.optional(message, "metadata", dict, f"{place}.") or {}
    if metadata.get("is_visually_hidden_from_conversation") is True or message.get("weight") == 0:
        return "hidden messages"
    if role not in ROLES:
        return "messages of unknown roles"
    recipient = record.string(message, "recipient", f"{place}.")
    return "tool calls" if role == "assistant" and recipient not in ("", "all") else ""
