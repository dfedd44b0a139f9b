"""The native format: JSON Lines, one session a line (``conversations.jsonl``).

    {"user_id": "u-anna", "session_id": "s1", "messages": [
       {"role": "user", "name": "Anna", "content": "I moved to Leeds.", "timestamp": "2025-03-04T09:34:00Z"},
       {"role": "assistant", "content": "Noted."}], "metadata": {}}

Fine-tuning files of OpenAI (``{"messages": […], "tools": […]}``) have this format too; their other keys are ignored.
``docs/schemas/conversations.schema.json`` says the same as this reader.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Head, Message, Skipped
from memskill_cli.datasets.json_records import Record
from memskill_cli.datasets.message_content import content_text, parse_time
from memskill_cli.datasets.source_files import head_of, json_lines
from memskill_cli.errors import DataError

NAME = "messages"
STRICT = True
SESSION_KEYS = ("user_id", "session_id", "messages", "metadata")
MESSAGE_KEYS = ("role", "name", "content", "timestamp")
OTHER_SESSION_KEYS = ("tools", "parallel_tool_calls", "functions")
OTHER_MESSAGE_KEYS = (
    *("tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations", "weight"),
    *("reasoning", "reasoning_content", "id", "type"),
)
"""Keys of OpenAI's messages, which are ignored."""
HINT = "see the format: docs/own-data.md"
_TO_LINES = "import json; [print(json.dumps(x)) for x in json.load(open({file!r}, encoding='utf-8-sig'))]"
_TO_ONE_LINE = "import json; print(json.dumps(json.load(open({file!r}, encoding='utf-8-sig'))))"
_TO_SESSION = "import json; print(json.dumps({{'messages': json.load(open({file!r}, encoding='utf-8-sig'))}}))"


def recognises(head: Head) -> bool:
    """Whether the first record has ``messages``, also where JSON Lines are expected and the file is one JSON value."""
    first = next(iter(head.values), None)
    if head.shape == "list" and _is_message(first):
        return True
    talk = first.get("messages") if isinstance(first, dict) else None
    return isinstance(talk, list) and all(_is_message(message) for message in talk[:3])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def read(path: Path, skipped: Skipped) -> Iterator[Conversation]:
    """See :class:`memskill_cli.datasets.conversations.Importer`."""
    _check_shape(head_of(path))
    for number, value in json_lines(path):
        session = _Session(f"{path.name}:{number}", value, HINT)
        yield session.conversation(default_id=str(number), skipped=skipped)


def _check_shape(head: Head) -> None:
    """Raise DataError, with the command that converts the file, if it is JSON and not JSON Lines."""
    first = next(iter(head.values), None)
    if isinstance(first, dict) and {"question", "answers"} <= first.keys():
        raise DataError(
            f"{head.path.name}: questions, not conversations",
            hint=f"name the file with --questions {shlex.quote(str(head.path))}",
        )
    if head.shape == "lines":
        return
    goal = shlex.quote(re.sub(r"(\.json)?(\.gz|\.zst)?$", "", head.path.name) + ".jsonl")
    if head.shape == "list":
        code, what = (_TO_SESSION, "messages") if _is_message(first) else (_TO_LINES, "sessions")
        problem = f"one JSON list of {what}, expected JSON Lines (one session a line)"
    elif head.shape == "object":
        code, problem = _TO_ONE_LINE, "one JSON object over several lines, expected JSON Lines (one session a line)"
    else:
        raise DataError(
            f"{head.path.name}: not JSON Lines",
            hint=f"look at its beginning: head -c 300 {shlex.quote(str(head.path))}",
        )
    command = shlex.join(["python3", "-c", code.format(file=str(head.path))])
    raise DataError(f"{head.path.name}: {problem}", hint=f"convert it: {command} > {goal}")


def check_keys(record: Record, names: Iterable[str], known: Collection[str], prefix: str = "") -> None:
    """Raise DataError for a key that is not ``known``, with the nearest one."""
    for name in sorted(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
            record.fail(f"{prefix}{name[:60]}: unknown key; {meant}")


def time_of(record: Record, value: Any, place: str) -> datetime | None:
    """A time, None for null. DataError with the field if it is none."""
    try:
        return parse_time(value)
    except ValueError as error:
        record.fail(f"{place} {error}")


class _Session(Record):
    """One line."""

    drops_nulls = False

    def conversation(self, default_id: str, skipped: Skipped) -> Conversation:
        given = {name: value for name, value in self.record.items() if value is not None}
        check_keys(self, self.record.keys() - OTHER_SESSION_KEYS, SESSION_KEYS)
        self.expect(given.get("metadata", {}), dict, "metadata")
        messages = self.field(given, "messages", list)
        return Conversation(
            user_id=self.text(given, "user_id") if "user_id" in given else None,
            session_id=self.text(given, "session_id") if "session_id" in given else default_id,
            messages=tuple(self._message(message, f"messages[{i}]", skipped) for i, message in enumerate(messages)),
            metadata=given.get("metadata", {}),
            where=self.where,
        )

    def _message(self, message: Any, place: str, skipped: Skipped) -> Message:
        table = self.expect(message, dict, place)
        given = {name: value for name, value in table.items() if value is not None}
        check_keys(self, table.keys() - OTHER_MESSAGE_KEYS, MESSAGE_KEYS, f"{place}.")
        if "content" not in table and not given.keys() & {"tool_calls", "function_call", "refusal", "audio"}:
            self.fail(f"{place}.content is missing")
        if given.get("tool_calls") or given.get("function_call"):
            skipped["tool calls"] += 1
        try:
            content = content_text(given.get("content"))
        except ValueError as error:
            self.fail(f"{place}.content{'' if str(error).startswith('[') else ' '}{error}")
        return Message(
            self.text(given, "role", f"{place}."),
            content,
            self.text(given, "name", f"{place}.") if "name" in given else None,
            time_of(self, given.get("timestamp"), f"{place}.timestamp"),
        )
