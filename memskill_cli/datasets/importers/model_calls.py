"""Conversations from traces of model calls, where each call repeats the messages before it.

A trace is the work for one message of a user: a root run, with model calls below it. If the root run has messages, they
are what was said; if not, the model calls of the trace are. The traces of one thread make one conversation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple

import orjson

from memskill_cli.datasets.conversations import Conversation, Message, Skipped
from memskill_cli.datasets.importers.parts import content_text
from memskill_cli.datasets.importers.records import ExportRecord
from memskill_cli.datasets.message_content import epoch

ROLES = {
    **dict.fromkeys(("user", "human", "HumanMessage", "HumanMessageChunk"), "user"),
    **dict.fromkeys(("assistant", "ai", "model", "AIMessage", "AIMessageChunk"), "assistant"),
    **dict.fromkeys(("system", "developer", "SystemMessage"), "system"),
    **dict.fromkeys(("tool", "function", "ToolMessage", "FunctionMessage"), "tool"),
}
"""By the name of a role, of a type of LangChain's messages, or of their class."""
_DEEPEST = 4
"""Objects around messages that are looked into."""


class Run(NamedTuple):
    """One run with messages: those that it was given, then those that it returned."""

    thread: str
    trace: str
    root: bool
    user: str | None
    time: datetime | None
    said: tuple[Message, ...]
    where: str


def conversations(runs: Iterable[Run], skipped: Skipped) -> Iterator[Conversation]:
    """One conversation for each thread. All runs are in memory together, because those of a thread may be anywhere."""
    threads: dict[str, list[Run]] = defaultdict(list)
    texts: dict[str, str] = {}  # each text once, because every call repeats those before it
    for run in runs:
        said = tuple(replace(m, content=texts.setdefault(m.content, m.content)) for m in run.said)
        threads[run.thread].append(run._replace(said=said))
    for thread, found in threads.items():
        chosen = _chosen(found, skipped)
        messages = _merged(chosen, skipped)
        user = next((run.user for run in chosen if run.user), None)
        yield Conversation(user, thread, tuple(messages), {"id": thread}, chosen[0].where)


def _chosen(runs: list[Run], skipped: Skipped) -> list[Run]:
    """The root run of each trace, else all its runs, by time."""
    with_root = {run.trace for run in runs if run.root}
    chosen = [run for run in runs if run.root or run.trace not in with_root]
    if nested := len(runs) - len(chosen):
        skipped["model calls below a run with the same messages"] += nested
    return sorted(chosen, key=lambda run: epoch(run.time) if run.time else 0.0)


def _merged(runs: list[Run], skipped: Skipped) -> list[Message]:
    """What was said in ``runs``, each message once, with the time of the first run that has it."""
    merged: list[Message] = []
    for run in runs:
        said = run.said if not merged else [message for message in run.said if message.role != "system"]
        known = _overlap([m for m in merged if m.role != "system"], said)
        if known:
            skipped["messages that a later call repeats"] += known
        merged += [replace(message, timestamp=message.timestamp or run.time) for message in said[known:]]
    return merged


def _overlap(before: list[Message], said: Sequence[Message]) -> int:
    """How many messages at the beginning of ``said`` are in ``before``: from its beginning, else at its end."""
    old, new = [(m.role, m.content) for m in before], [(m.role, m.content) for m in said]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    if same and same == len(new) - 1 and same < len(old):
        return len(new)  # the same call again, with another reply
    if same:
        return same
    return next((size for size in range(min(len(old), len(new)), 0, -1) if old[-size:] == new[:size]), 0)


def exchange(asked: list[Message], replies: list[Message]) -> tuple[Message, ...]:
    """The messages of a run: what it was given and what it returned, which may be a state that has both."""
    return tuple(replies if replies[: len(asked)] == asked else asked + replies)


def decoded(value: Any) -> Any:
    """``value``, decoded if it is JSON as text, as exports have it."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def messages_of(record: ExportRecord, value: Any, place: str, skipped: Skipped) -> list[Message] | None:
    """``value`` as messages; None if it is not in one of the known forms.

    A list of messages, a list of one such list, one message, or an object with ``messages``, ``message``, ``choices``,
    ``generations`` or ``output`` in which they are.
    """
    if isinstance(value, list):
        return _listed(record, value, place, skipped)
    if not isinstance(value, dict):
        return None
    for name in ("messages", "message", "choices", "generations", "output"):
        if inner := value.get(name):
            if name in ("choices", "generations"):  # further ones are other answers to the same prompt
                inner = inner[:1] if isinstance(inner, list) else inner
            return messages_of(record, inner, f"{place}.{name}", skipped) if place.count(".") < _DEEPEST else None
    message = _message(record, value, place, skipped)
    return [message] if message else None


def _listed(record: ExportRecord, values: list[Any], place: str, skipped: Skipped) -> list[Message] | None:
    if _is_pair(values):
        values = [values]
    elif len(values) == 1 and isinstance(values[0], list) and not _is_pair(values[0]):
        values = values[0]
    found = [_message(record, item, f"{place}[{i}]", skipped) for i, item in enumerate(values)]
    return [message for message in found if message] if found and None not in found else None


def _is_pair(value: list[Any]) -> bool:
    """``["assistant", "Paris."]``, which is a message in LangChain."""
    return len(value) == 2 and all(isinstance(item, str) for item in value) and value[0] in ROLES


def _message(record: ExportRecord, value: Any, place: str, skipped: Skipped) -> Message | None:
    """One message: ``{role, content}``, ``{type, content}``, one that LangChain serialised, or a pair of texts.

    None for anything else, because programs may trace what they like.
    """
    if isinstance(value, list) and _is_pair(value):
        return Message(ROLES[value[0]], value[1])
    if isinstance(value, dict) and isinstance(value.get("message"), dict):  # an item of choices or generations
        value = value["message"]
    if not isinstance(value, dict):
        return None
    fields = next((value[name] for name in ("kwargs", "data") if isinstance(value.get(name), dict)), value)
    role, content = _role(value, fields), fields.get("content")
    if role is None or "content" not in fields or not isinstance(content, str | list | None):
        return None
    if fields.get("tool_calls"):
        skipped["tool calls"] += 1
    name = fields.get("name")
    text = content_text(record, content, f"{place}.content", skipped)
    return Message(role, text, name.strip() or None if isinstance(name, str) else None)


def _role(value: dict[str, Any], fields: dict[str, Any]) -> str | None:
    path = value.get("id")  # of a serialised message: ["langchain", "schema", "messages", "HumanMessage"]
    last = path[-1] if isinstance(path, list) and path else None
    names = (fields.get("role"), value.get("type"), fields.get("type"), last)
    return next((ROLES[name] for name in names if isinstance(name, str) and name in ROLES), None)
