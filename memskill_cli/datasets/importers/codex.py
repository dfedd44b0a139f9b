"""Rollouts of Codex: ``~/.codex/sessions/YYYY/MM/DD/rollout-….jsonl``, one file a session.

A line is ``{timestamp, type, payload}``. Messages are lines of type ``response_item`` with a payload of type
``message``; the events ``user_message`` and ``agent_message`` repeat them. In old files, the lines are the payloads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.importers.parts import PROGRAM, REASONING, TOOL_CALLS, TOOL_RESULTS, content_text
from memskill_cli.datasets.importers.records import OWNER, ExportRecord, dated
from memskill_cli.datasets.importers.session_logs import log_lines, log_name, without_blocks

NAME = "codex"
HINT = "see what is expected: docs/importing-conversations.md#codex"
ROLES = {"user": "user", "assistant": "assistant", "developer": "system", "system": "system"}
CONTEXT, SUMMARIES = "contexts added by the program", "summaries"
_LINES = frozenset({"session_meta", "response_item", "event_msg", "turn_context", "compacted", "world_state"})
_MACHINES = frozenset({"exec", "mcp"})
_TAGS = dict.fromkeys(
    (
        *("environment_context", "user_instructions", "INSTRUCTIONS", "turn_aborted", "skill", "user_shell_command"),
        *("subagent_notification", "recommended_plugins", "permissions instructions", "collaboration_mode"),
        *("personality_spec", "model_switch", "user_action", "realtime_conversation", "app-context"),
    ),
    CONTEXT,
)
_INSTRUCTIONS = "# AGENTS.md instructions for "
_EDITOR = ("# Context from my IDE setup:", "# Files mentioned by the user:")
_REQUEST = "## My request for Codex:"
_PICTURE = re.compile(r"<image(?: name=[^>]*)?>|</image>")
"""Texts around the part that is a picture."""
_SUMMARY = "Another language model started to solve this problem"


def recognises(head: Head) -> bool:
    """Whether a line at the beginning is one of a rollout."""
    return any(isinstance(value, dict) and _is_line(value) for value in head.values)


def _is_line(value: dict[str, Any]) -> bool:
    if isinstance(value.get("payload"), dict):
        return isinstance(value.get("type"), str) and value["type"] in _LINES
    return {"id", "timestamp", "instructions"} <= value.keys()  # the first line of an old file


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`. All files are of one user."""
    rollout = _Rollout(path, skipped)
    for where, value in log_lines(path, skipped):
        rollout.add(ExportRecord(where, value, HINT))
    if rollout.by_machine:
        skipped["machine-made sessions"] += 1
    else:
        yield rollout.conversation()


class _Rollout:
    """The lines of one file, which become a conversation. ``by_machine``: no person wrote its prompts."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        self._path, self._skipped = path, skipped
        self._messages: list[Message] = []
        self._meta: dict[str, Any] = {}
        self._start: datetime | None = None
        self.by_machine = False

    def add(self, record: ExportRecord) -> None:
        item = record.record
        kind = record.string(item, "type")
        if "payload" not in item and not kind:
            self._head(record, item, "")
        elif "payload" not in item:
            self._response(record, item, "")
        elif kind == "session_meta":
            self._head(record, record.field(item, "payload", dict), "payload.")
        elif kind == "response_item":
            self._response(record, record.field(item, "payload", dict), "payload.")
        elif kind == "event_msg":
            self._event(record, record.field(item, "payload", dict))
        else:
            self._skipped[SUMMARIES if kind == "compacted" else PROGRAM] += 1

    def conversation(self) -> Conversation:
        name = log_name(self._path)
        metadata = {key: self._meta[key] for key in ("id", "project") if self._meta.get(key)}
        messages = dated(self._messages, self._start)
        return Conversation(OWNER, self._meta.get("id") or name, messages, metadata, self._path.name)

    def _head(self, record: ExportRecord, head: dict[str, Any], prefix: str) -> None:
        """The first line of a session. Further ones, in a copy of another session, are not about this one."""
        if self._meta or "id" not in head:
            self._skipped[PROGRAM] += 1
            return
        self._meta = {"id": record.text(head, "id", prefix), "project": record.string(head, "cwd", prefix)}
        self._start = record.time(head, "timestamp", prefix)
        source = head.get("source")
        self.by_machine = (
            (isinstance(source, str) and source in _MACHINES)
            or (isinstance(source, dict) and "custom" not in source)  # an agent of another session
            or head.get("thread_source") == "subagent"
            or record.string(head, "originator", prefix).startswith("codex_exec")
        )

    def _event(self, record: ExportRecord, event: dict[str, Any]) -> None:
        kind = record.string(event, "type", "payload.")
        if kind == "thread_rolled_back":
            self._undo(record.field(event, "num_turns", int, "payload."))
        self._skipped["repeated events" if kind in ("user_message", "agent_message") else "events"] += 1

    def _undo(self, turns: int) -> None:
        """Remove the last ``turns`` prompts, with all that follows them: the user took them back."""
        prompts = [i for i, message in enumerate(self._messages) if message.role == "user"]
        if turns > 0 and prompts:
            first = prompts[max(0, len(prompts) - turns)]
            self._skipped["messages that were taken back"] += len(self._messages) - first
            del self._messages[first:]

    def _response(self, record: ExportRecord, item: dict[str, Any], prefix: str) -> None:
        kind = record.string(item, "type", prefix)
        if kind != "message":
            self._skipped[_kind_of(kind)] += 1
            return
        role = record.text(item, "role", prefix)
        if role not in ROLES:
            self._skipped["messages of unknown roles"] += 1
            return
        content = item.get("content")
        if role == "user":
            content = self._said(record, content, f"{prefix}content")
            if not content:
                return
        text = content_text(record, content, f"{prefix}content", self._skipped)
        time = record.time(record.record, "timestamp") if prefix else None
        self._messages.append(Message(ROLES[role], text, None, time))

    def _said(self, record: ExportRecord, content: Any, place: str) -> Any:
        """The content of a user's message without what the program added to it; [] if nothing is left."""
        if content is None or isinstance(content, str):
            return self._without_context(content or "") or []
        kept = []
        for part in record.expect(content, list, place):
            text = part.get("text") if isinstance(part, dict) else part
            if not isinstance(text, str):
                kept.append(part)
            elif said := self._without_context(text):
                kept.append(said)
        return kept

    def _without_context(self, text: str) -> str:
        bare = text.strip()
        if _PICTURE.fullmatch(bare):
            return ""
        if bare.startswith(_SUMMARY):
            self._skipped[SUMMARIES] += 1
            return ""
        if bare.startswith(_INSTRUCTIONS):
            self._skipped[CONTEXT] += 1
            return ""
        if bare.startswith(_EDITOR) and _REQUEST in bare:
            self._skipped[CONTEXT] += 1
            bare = bare.partition(_REQUEST)[2]
        said, found = without_blocks(bare, _TAGS)
        self._skipped.update(found)
        return said.strip()


def _kind_of(item: str) -> str:
    """The kind of :data:`Skipped` of a response item that is no message."""
    if item.endswith("_output"):
        return TOOL_RESULTS
    if item.endswith("_call"):
        return TOOL_CALLS
    return REASONING if item == "reasoning" else PROGRAM
