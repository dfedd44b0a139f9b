"""Replies of the rule-based executor to Mem0 and LangMem: the same rules as for memskill, in their JSON formats.

Mem0 asks for the facts of a text, then for a change of the memories per fact. LangMem asks for function calls that add
or patch a memory.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import orjson

from memskill_cli.testing.replies import Request
from memskill_cli.testing.rule_text import MAX_INSERTS, DatedLine, informative, nearest, words

_FENCED = re.compile(r"```\s*(\[.*?\])\s*```", re.S)
_SESSION = re.compile(r"<session_(\w+)>(.*)</session_\1>", re.S)
_INSTANCE = re.compile(r'<instance id=(\w+) schema_type="Memory">\s*(\{.*?\})\s*</instance>', re.S)
_HEADING = re.compile(r"^=+ .* =+$", re.M)


def reply(request: Request) -> str | None:
    """The reply; None for prompts of other systems."""
    opening = request.text.lstrip()[:100].lower()
    if opening.startswith("you are a personal information organizer"):
        return _json(facts=facts(str(request.messages[-1].get("content"))))
    if opening.startswith("you are a smart memory manager"):
        return _json(memory=changes(request.text))
    if opening.startswith("you act by calling functions"):
        return _json(calls=calls(request.text))
    return None


def facts(text: str) -> list[str]:
    """The informative lines of Mem0's text, without dates, because Mem0 stores the date itself."""
    span = re.sub(r"^(Input:\s*)?(user: )?", "", text)
    return [line.memory.removeprefix(f"{line.date} | ") for line in informative(span)[:MAX_INSERTS]]


def changes(prompt: str) -> list[dict[str, str]]:
    """Mem0's event per memory: NONE or UPDATE for the old memories, ADD for facts that no old memory is close to."""
    old, new = (ast.literal_eval(block) for block in _FENCED.findall(prompt)[-2:])
    memories = [str(item["text"]) for item in old]
    entries = [{"id": str(item["id"]), "text": str(item["text"]), "event": "NONE"} for item in old]
    for fact in map(str, new):
        near = nearest(DatedLine("", "", fact), memories) if words(fact) else None
        if near is None:
            entries.append({"id": str(len(entries)), "text": fact, "event": "ADD"})
        elif entries[near]["event"] == "NONE" and not words(fact) <= words(memories[near]):
            entries[near] |= {"text": fact, "event": "UPDATE", "old_memory": memories[near]}
    return entries


def calls(prompt: str) -> list[dict[str, Any]]:
    """A ``Memory`` call per new fact, and a ``PatchDoc`` call per fact that extends an existing memory."""
    existing = [(key, str(ast.literal_eval(value)["content"])) for key, value in _INSTANCE.findall(prompt)]
    session = _SESSION.search(prompt)
    made: dict[str, dict[str, Any]] = {}
    for line in informative(_HEADING.sub("", session[2]) if session else "")[:MAX_INSERTS]:
        near = nearest(line, [text for _, text in existing])
        if near is None:
            made[line.memory] = {"name": "Memory", "arguments": {"content": line.memory}}
        elif existing[near][0] not in made and not words(line.memory) <= words(existing[near][1]):
            made[existing[near][0]] = {"name": "PatchDoc", "arguments": _patch(existing[near][0], line.memory)}
    return list(made.values())


def _patch(key: str, text: str) -> dict[str, Any]:
    edit = {"op": "replace", "path": "/content", "value": text}
    return {"json_doc_id": key, "planned_edits": "Say what is newer.", "patches": [edit]}


def _json(**fields: Any) -> str:
    return orjson.dumps(fields).decode()
