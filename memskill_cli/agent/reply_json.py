"""Replies in JSON, sound or with the small errors that models make."""

from __future__ import annotations

import json
import re
from typing import Any

from memskill_cli.agent.reply_entry import FENCE, Entry, read_verb

MAX_MENDED = 40_000
"""Characters of a text with errors that are still looked at. Mending takes time, the more so the more it nests."""
MAX_OPENINGS = 500
"""Brackets that may begin something in a text with errors: each false one costs as much as the text is long."""
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
    """The entries of JSON anywhere in the reply, with small errors mended; None if it has no actions in JSON."""
    entries, broken, before = _scan(reply)
    said = broken.lower()
    found = _entries(mended(broken)) if "action" in said or "operation" in said else None
    sound = entries or []
    if before and found:  # the form of an action, shown after the actions, is none
        found = [entry for entry in found if entry.verb]
    return [*sound[:before], *found] if found is not None and len(found) > len(sound) - before else entries


def sound_json(reply: str) -> tuple[list[Entry] | None, str]:
    """The entries of all JSON without errors, and the rest of the text from the first JSON with errors on."""
    return _scan(reply)[:2]


def _scan(reply: str) -> tuple[list[Entry] | None, str, int]:
    """What :func:`sound_json` gives back, and how many of the entries stand before the JSON with errors."""
    text = "\n".join(line for line in reply.split("\n") if not FENCE.match(line) or "{" in line or "[" in line)
    entries: list[Entry] | None = None
    at, broken, before, false = 0, "", 0, 0
    while false <= MAX_OPENINGS and (opening := _OPENING.search(text, at)):
        at = opening.start() + 1
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text, opening.start())
            found = _from_json(value)
        except ValueError:
            if not broken:
                broken, before = text[opening.start() :], len(entries or [])
            false += 1
            continue
        except RecursionError:  # no reply of ours nests a hundred deep
            return entries, "", 0
        if found is not None:
            entries, at = [*(entries or []), *found], end
    return entries, broken, before


def mended(text: str) -> Any:
    """What a lenient reader makes of a text that is not quite JSON; None if that fails or would take too long."""
    import json_repair

    if len(text) > MAX_MENDED or text.count("{") + text.count("[") > MAX_OPENINGS:
        return None
    try:
        return json_repair.loads(text)
    except Exception:  # whatever the library makes of wild text, a mending that fails is none
        return None


def _entries(value: Any) -> list[Entry] | None:
    try:
        return _from_json(value)
    except RecursionError:
        return None


def _from_json(value: Any) -> list[Entry] | None:
    """The entries of a decoded value: {"actions": […]}, one action, or a list of actions; None if it is none."""
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
        return [entry for item in items for entry in _from_json(item) or _bare(item)]
    index = next((fields[name] for name in ("index", "memory_index") if fields.get(name) is not None), None)
    memory = next((fields[name] for name in _MEMORY_KEYS if isinstance(fields.get(name), str)), None)
    return [Entry(str(actions), None if index is None else _whole(index), memory)]


def _bare(item: Any) -> list[Entry]:
    """ "NOOP" in place of {"action": "NOOP"}; other texts are chatter that mending swept in."""
    return [Entry(item)] if isinstance(item, str) and read_verb(item) else []


def _whole(index: Any) -> str:
    """An index as text: 3 of 3, 3.0 and "3", but not of true."""
    return str(int(index)) if isinstance(index, float) and index.is_integer() else str(index)
