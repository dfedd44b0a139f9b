"""The executor's reply, as actions.

Models are asked for blocks separated by blank lines (``ACTION: INSERT`` + ``MEMORY: text`` and so on) and understood
when they add chatter, code fences, Markdown or numbering, or reply in JSON. Three rules keep memories whole and clean:
only a known key at the start of a line ends a memory text, so "Her reaction to…" stays as it is; a blank line ends it
too, so that what the model says between and after its blocks is not remembered; of a reply that the token limit has
cut the last action, which may be half of one, is rejected. (Reasoning is removed before: see ``llm/reasoning.py``.)
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memskill_cli.agent.reply_blocks import MAX_SAID, block_entries
from memskill_cli.agent.reply_entry import Entry
from memskill_cli.agent.reply_json import json_entries, sound_json
from memskill_cli.types import Action, MemoryAction, Outcome

_JSON_START = re.compile(r"\s*(?:(?:```|~~~)\w*\s*)?[{\[]")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_CHANGES = (Action.UPDATE, Action.DELETE)
_WRITES = (Action.INSERT, Action.UPDATE)


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply asks for. ``found`` is False if nothing in it looks like an action, not even NOOP."""

    actions: tuple[MemoryAction, ...]
    rejected: dict[Outcome, int]
    found: bool


def parse_reply(text: str, *, cut: bool = False) -> ParsedReply:
    """Every action that can be read in an executor's reply, in order; all but the last of one that was ``cut``.

    Never raises.

    A NOOP beside other actions says nothing and is left out; several NOOPs are one. What looks like an action of
    an unknown type is counted in ``rejected``. Indices and texts are as found: :func:`check_actions` judges them.
    Of a reply beyond ``MAX_SAID`` nothing is read.
    """
    entries = _read_entries(text) if len(text) <= MAX_SAID else None
    if entries is None:
        return ParsedReply((), {}, found=False)
    half = entries[len(entries) - 1 :] if cut else []
    entries = entries[: len(entries) - len(half)]
    actions = [action for entry in entries if (action := _to_action(entry)) is not None]
    unknown = len(entries) - len(actions)
    does = [action for action in actions if action.action is not Action.NOOP]
    rejected = {Outcome.UNKNOWN_ACTION: unknown, Outcome.CUT: len(half)}
    return ParsedReply(tuple(does or actions[:1]), {why: count for why, count in rejected.items() if count}, found=True)


def _read_entries(reply: str) -> list[Entry] | None:
    """The entries of a reply, in order; None if there is nothing in it that looks like an action.

    Blocks are looked for first, unless the reply begins with sound JSON.
    """
    blocks = block_entries(reply)
    if any(entry.verb for entry in blocks):
        return (sound_json(reply)[0] if _JSON_START.match(reply) else None) or blocks
    entries = json_entries(reply)
    return entries if entries is not None else blocks or None


def _to_action(entry: Entry) -> MemoryAction | None:
    action = entry.verb
    if action is None:
        return None
    text = clean_text(entry.memory or "") if action in _WRITES else ""
    return MemoryAction(action, text, entry.place if action in _CHANGES else None)


def clean_text(text: str) -> str:
    """A memory text without blanks at its ends and quotes around the whole; "" if only punctuation is left."""
    text = text.encode("utf-8", "replace").decode().strip()  # JSON can escape half a character
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        inner = text[1:-1]
        if {text[0], text[-1]} & set(re.sub(r"\b['’]\b", "", inner)):  # "A" and "B"
            break
        text = inner.strip()
    return text if text.strip(string.punctuation + string.whitespace) else ""


def check_actions(
    actions: Sequence[MemoryAction], *, allowed: Collection[Action], shown: int, max_chars: int, max_actions: int
) -> tuple[list[MemoryAction], dict[Outcome, int]]:
    """The actions to apply, in order, and how many of the others were rejected for which reason (section 3, step 5).

    ``shown`` is the number of memories the executor saw. Of several UPDATEs or DELETEs of one index the first is
    applied, and a DELETE beats an UPDATE. NOOP changes nothing, so it is never rejected: it is an action of its own
    type, whichever skills were chosen.
    """
    rejected: Counter[Outcome] = Counter()
    good = []
    for action in actions:
        if (fault := _fault(action, allowed, shown, max_chars)) is None:
            good.append(action)
        else:
            rejected[fault] += 1
    unique = _once_an_index(good)
    rejected[Outcome.DUPLICATE] += len(good) - len(unique)
    rejected[Outcome.TOO_MANY] += max(0, len(unique) - max_actions)
    return unique[:max_actions], {outcome: count for outcome, count in rejected.items() if count}


def _fault(action: MemoryAction, allowed: Collection[Action], shown: int, max_chars: int) -> Outcome | None:
    if action.action is Action.NOOP:
        return None
    if action.action not in allowed:
        return Outcome.NOT_ALLOWED
    if action.action in _CHANGES and (action.index is None or not 0 <= action.index < shown):
        return Outcome.BAD_INDEX
    if action.action in _WRITES and not action.text.strip():
        return Outcome.EMPTY_TEXT
    return Outcome.TOO_LONG if len(action.text) > max_chars else None


def _once_an_index(actions: list[MemoryAction]) -> list[MemoryAction]:
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
