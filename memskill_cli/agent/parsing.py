"""Parse and validate the actions of an executor's reply.

The prompt asks for blocks separated by blank lines (``ACTION: INSERT`` + ``MEMORY: text`` and so on). Replies with
extra prose, code fences, Markdown or numbering, and replies in JSON, are read too. Three rules protect memory texts:
only a known key at the start of a line ends a text, so "Her reaction to…" is kept; a blank line ends it, so prose
between and after the blocks is not stored; if the token limit cut the reply, the last action may be incomplete and is
rejected. Reasoning is removed before (``llm/reasoning.py``).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memskill_cli.agent.reply_blocks import MAX_REPLY_CHARS, block_entries
from memskill_cli.agent.reply_entry import Entry
from memskill_cli.agent.reply_json import json_entries, valid_json
from memskill_cli.types import Action, ActionStatus, MemoryAction

_JSON_START = re.compile(r"\s*(?:(?:```|~~~)\w*\s*)?[{\[]")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_CHANGES = (Action.UPDATE, Action.DELETE)
_WRITES = (Action.INSERT, Action.UPDATE)


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The actions of a reply. ``found`` is False if nothing in it looks like an action, not even NOOP."""

    actions: tuple[MemoryAction, ...]
    rejected: dict[ActionStatus, int]
    found: bool


def parse_reply(text: str, *, cut: bool = False) -> ParsedReply:
    """All actions of an executor's reply, in order; all but the last if the token limit ``cut`` the reply.

    Never raises. A NOOP next to other actions is dropped; several NOOPs become one. Actions of an unknown type are
    counted in ``rejected``. Indices and texts are not validated: :func:`check_actions` does that. A reply longer than
    ``MAX_REPLY_CHARS`` is not read.
    """
    entries = _read_entries(text) if len(text) <= MAX_REPLY_CHARS else None
    if entries is None:
        return ParsedReply((), {}, found=False)
    incomplete = entries[len(entries) - 1 :] if cut else []
    entries = entries[: len(entries) - len(incomplete)]
    actions = [action for entry in entries if (action := _to_action(entry)) is not None]
    unknown = len(entries) - len(actions)
    changes = [action for action in actions if action.action is not Action.NOOP]
    rejected = {ActionStatus.UNKNOWN_ACTION: unknown, ActionStatus.CUT: len(incomplete)}
    counts = {reason: count for reason, count in rejected.items() if count}
    return ParsedReply(tuple(changes or actions[:1]), counts, found=True)


def _read_entries(reply: str) -> list[Entry] | None:
    """The entries of a reply, in order; None if nothing in it looks like an action.

    Blocks have priority, unless the reply begins with valid JSON.
    """
    blocks = block_entries(reply)
    if any(entry.verb for entry in blocks):
        return (valid_json(reply)[0] if _JSON_START.match(reply) else None) or blocks
    entries = json_entries(reply)
    return entries if entries is not None else blocks or None


def _to_action(entry: Entry) -> MemoryAction | None:
    action = entry.verb
    if action is None:
        return None
    text = clean_text(entry.memory or "") if action in _WRITES else ""
    return MemoryAction(action, text, entry.position if action in _CHANGES else None)


def clean_text(text: str) -> str:
    """A memory text without surrounding whitespace and quotes; "" if only punctuation is left."""
    text = text.encode("utf-8", "replace").decode().strip()  # JSON can escape half a character
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        inner = text[1:-1]
        if {text[0], text[-1]} & set(re.sub(r"\b['’]\b", "", inner)):  # "A" and "B"
            break
        text = inner.strip()
    return text if text.strip(string.punctuation + string.whitespace) else ""


def check_actions(
    actions: Sequence[MemoryAction], *, allowed: Collection[Action], shown: int, max_chars: int, max_actions: int
) -> tuple[list[MemoryAction], dict[ActionStatus, int]]:
    """The actions to apply, in order, and the number of rejected actions by reason (section 3 of docs/method.md).

    ``shown`` is the number of memories in the executor's prompt. Of several UPDATEs or DELETEs of one index only the
    first is applied; a DELETE has priority over an UPDATE. NOOP changes nothing and is never rejected, whichever
    skills were selected.
    """
    rejected: Counter[ActionStatus] = Counter()
    good = []
    for action in actions:
        if (reason := _rejection(action, allowed, shown, max_chars)) is None:
            good.append(action)
        else:
            rejected[reason] += 1
    unique = _deduplicate(good)
    rejected[ActionStatus.DUPLICATE] += len(good) - len(unique)
    rejected[ActionStatus.TOO_MANY] += max(0, len(unique) - max_actions)
    return unique[:max_actions], {reason: count for reason, count in rejected.items() if count}


def _rejection(action: MemoryAction, allowed: Collection[Action], shown: int, max_chars: int) -> ActionStatus | None:
    if action.action is Action.NOOP:
        return None
    if action.action not in allowed:
        return ActionStatus.NOT_ALLOWED
    if action.action in _CHANGES and (action.index is None or not 0 <= action.index < shown):
        return ActionStatus.BAD_INDEX
    if action.action in _WRITES and not action.text.strip():
        return ActionStatus.EMPTY_TEXT
    return ActionStatus.TOO_LONG if len(action.text) > max_chars else None


def _deduplicate(actions: list[MemoryAction]) -> list[MemoryAction]:
    deleted = {action.index for action in actions if action.action is Action.DELETE}
    seen: set[int | None] = set()
    unique = []
    for action in actions:
        if action.action in _CHANGES:
            if action.index in seen or (action.action is Action.UPDATE and action.index in deleted):
                continue
            seen.add(action.index)
        unique.append(action)
    return unique
