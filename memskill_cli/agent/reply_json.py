"""Read memory actions from JSON replies, valid or with small errors."""

from __future__ import annotations

import json
import re
from typing import Any

from memskill_cli.agent.reply_entry import FENCE, Entry, read_verb

MAX_REPAIRED = 40_000
"""Longest text with errors that is repaired, in characters. Repair time grows with length and nesting."""
MAX_OPENINGS = 500
"""Most failed attempts to decode JSON in one text. Each failed attempt takes time linear in the length of the text."""
_OPENING = re.compile(r"[{\[](?=\s*[{\"'}\]])")
_ACTION_KEYS = ("actions", "action", "operations", "operation", "action_type")
_MEMORY_KEYS = (
    "memory",
    "updated_memory",
    "new_memory",
    "memory_item",
    "memory_text",
    "memory_content",
    "text",
    "content",
)


def json_entries(reply: str) -> list[Entry] | None:
    """The entries of JSON anywhere in the reply, small errors repaired; None if the reply has no actions in JSON."""
    entries, broken, before = _scan(reply)
    lowered = broken.lower()
    found = _entries(repair_json(broken)) if "action" in lowered or "operation" in lowered else None
    valid = entries or []
    if before and found:  # an example of the format after the actions is not an action
        found = [entry for entry in found if entry.verb]
    return [*valid[:before], *found] if found is not None and len(found) > len(valid) - before else entries


def valid_json(reply: str) -> tuple[list[Entry] | None, str]:
    """The entries of all valid JSON, and the rest of the text from the first invalid JSON on."""
    return _scan(reply)[:2]


def _scan(reply: str) -> tuple[list[Entry] | None, str, int]:
    """The result of :func:`valid_json`, and the number of entries before the first invalid JSON."""
    text = "\n".join(line for line in reply.split("\n") if not FENCE.match(line) or "{" in line or "[" in line)
    entries: list[Entry] | None = None
    at, broken, before, failed = 0, "", 0, 0
    while failed <= MAX_OPENINGS and (opening := _OPENING.search(text, at)):
        at = opening.start() + 1
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text, opening.start())
            found = _from_json(value)
        except ValueError:
            if not broken:
                broken, before = text[opening.start() :], len(entries or [])
            failed += 1
            continue
        except RecursionError:  # a valid reply has only a few levels
            return entries, "", 0
        if found is not None:
            entries, at = [*(entries or []), *found], end
    return entries, broken, before


def repair_json(text: str) -> Any:
    """The value of a text that is almost JSON; None if the repair fails, or if it would take too long."""
    import json_repair

    if len(text) > MAX_REPAIRED or text.count("{") + text.count("[") > MAX_OPENINGS:
        return None
    try:
        return json_repair.loads(text)
    except Exception:  # json_repair documents no exception type; any failure means "not repairable"
        return None


def _entries(value: Any) -> list[Entry] | None:
    try:
        return _from_json(value)
    except RecursionError:
        return None


def _from_json(value: Any) -> list[Entry] | None:
    """The entries of a decoded value: {"actions": […]}, one action, or a list of actions; None for anything else."""
    if isinstance(value, list):
        found = [_from_json(item) for item in value]
        return [entry for entries in found for entry in entries or []] if any(e is not None for e in found) else None
    if not isinstance(value, dict):
        return None
    fields = {re.sub(r"\W", "_", str(key).strip().lower()): item for key, item in value.items()}
    actions = next((fields[name] for name in _ACTION_KEYS if fields.get(name) is not None), None)
    if actions is None and isinstance(kind := fields.get("type"), str) and read_verb(kind):
        actions = kind
    if actions is None:
        return None
    if isinstance(actions, dict | list):
        items = actions if isinstance(actions, list) else [actions]
        return [entry for item in items for entry in _from_json(item) or _from_text(item)]
    index = next((fields[name] for name in ("index", "memory_index") if fields.get(name) is not None), None)
    memory = next((fields[name] for name in _MEMORY_KEYS if isinstance(fields.get(name), str)), None)
    return [Entry(str(actions), None if index is None else _index_text(index), memory)]


def _from_text(item: Any) -> list[Entry]:
    """The entry of the string "NOOP" in place of {"action": "NOOP"}; none for other text that the repair picked up."""
    return [Entry(item)] if isinstance(item, str) and read_verb(item) else []


def _index_text(index: Any) -> str:
    """An index as text: "3" for 3, 3.0 and "3"; "True" for true."""
    return str(int(index)) if isinstance(index, float) and index.is_integer() else str(index)
