"""Replies in blocks of ``ACTION: …`` lines, or of one line an action (``INSERT: …``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from memskill_cli.agent.reply_entry import FENCE, VERB, Entry, read_verb
from memskill_cli.types import Action

MAX_SAID = 200_000
"""Characters of a reply beyond which it is not read: what is read takes time, some of it squared."""
_MEMORY_KEYS = r"(?:new|updated)[ _-]?memory(?:[ _-]?(?:item|text|content))?|memory[ _-]?(?:item|text|content)|memory"
_KEYS = rf"(?:memory[ _-]?index|{_MEMORY_KEYS}|content|text|index|action(?:[ _-]?type)?|operation|reasoning)"
_LEAD = r"[\s>\#]* (?:[-*+•]\s+)? (?:\(?\d{1,3}[.):]\s*)? (?P<mark>[*_`]{0,3})"
_KEY_LINE = re.compile(
    rf"""{_LEAD} (?P<key>{_KEYS}) (?:\s*\#?\d{{1,3}})? (?P<closed>[*_`]{{0,3}})
    (?: \s*(?P<sign>[:：]) | \s*= | \s+[-–—](?=\s) ) (?P<value>.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_VERB_LINE = re.compile(
    rf"""{_LEAD} (?P<verb>INSERT|UPDATE|DELETE) (?P<closed>[*_`]{{0,3}})
    (?: \s* (?P<place>\[?\#?\d{{1,9}}\]?) (?=\s*[:：]|\s*\Z) )? (?: \s*[:：](?P<value>.*) )?""",
    re.VERBOSE | re.DOTALL,
)
"""``INSERT: text``, ``UPDATE 2: text``, ``DELETE: 2``: in capitals, so that "Update: I have looked" is prose."""
_ACTION_WORDS = re.compile(r"^([\s>#*+•\d.)(_`-]*ACTION)\s+(?=(?:INSERT|UPDATE|DELETE|NO-?OP)\b)")
_INNER_KEY = re.compile(rf"(?<=[\s,;|(])[*_`]{{0,3}}(?={_KEYS}[*_`]{{0,3}}\s?[:：])", re.IGNORECASE)
_NEXT_ACTION = re.compile(r";\s*(?=ACTION\s*[:：=-]?\s*(?:INSERT|UPDATE|DELETE|NO-?OP)\b)", re.IGNORECASE)
_NEXT_VERB = re.compile(r";\s*(?=(?:INSERT|UPDATE|DELETE)\s*(?:\[?#?\d{1,9}\]?\s*)?[:：]|NO-?OP\s*(?:;|\Z))")
_BARE_VERB = re.compile(r"[\s>#*_`(\[-]*(insert|update|delete|no[-_ ]?op)[\s*_`)\].;]*", re.IGNORECASE)


class _Key(NamedTuple):
    name: str  # action, index, memory, updated_memory, reasoning
    value: str


def block_entries(reply: str) -> list[Entry]:
    """The entries of ``ACTION: …`` blocks."""
    reader = _BlockReader()
    for line in reply.replace("\r\n", "\n").split("\n"):
        for action in _split_actions(line):
            for part in _split_line(action):
                reader.read(part)
    return [entry for entry in reader.entries if entry != Entry("")]


class _BlockReader:
    """Reads line by line. ``open``: the last entry's memory text goes on."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open = False

    def read(self, line: str) -> None:
        if key := _key(line, in_text=self.open, waiting=self._waits()):
            self.open = False
            self._take(key)
        elif entry := _verb_entry(line, in_text=self.open):
            self.entries.append(entry)
            self.open = entry.memory is not None
        elif self.open:
            self._go_on(line)
        elif bare := _BARE_VERB.fullmatch(line):
            self._take(_Key("action", bare[1]))

    def _waits(self) -> bool:
        """Whether the last entry has no memory text yet."""
        return bool(self.entries) and self.entries[-1].memory is None

    def _go_on(self, line: str) -> None:
        """One more line of the open text; a blank one ends it, unless nothing or only a heading was said so far."""
        text = self.entries[-1].memory or ""
        if FENCE.match(line) or (not line.strip() and text.strip() and not text.rstrip().endswith(":")):
            self.open = False
        else:
            self.entries[-1].memory = f"{text}\n{line}"

    def _take(self, key: _Key) -> None:
        last = self.entries[-1] if self.entries else None
        if key.name == "action":
            if last == Entry(""):  # "ACTION:" with its type on the next line
                self.entries.pop()
            self.entries.append(Entry(key.value, index=_index_beside(key.value)))
        elif last is None or key.name == "reasoning":
            return
        elif key.name == "index":
            if last.index is not None and last.verb is Action.UPDATE and last.memory is None:
                last.index = f"{last.index}, {key.value}"  # two indices for one text: an error of this action
                return
            if last.index is not None and last.verb in (Action.UPDATE, Action.DELETE):
                last = self._another(Entry(last.action))
            last.index = key.value
        else:
            if last.memory is not None and key.name == "memory" and last.verb in (Action.INSERT, Action.UPDATE):
                last = self._another(Entry(last.action, last.index))
            last.memory, self.open = key.value, True

    def _another(self, entry: Entry) -> Entry:
        """A field for the second time is a second action of the same type."""
        self.entries.append(entry)
        return entry


def _index_beside(action: str) -> str | None:
    """What stands behind the type in "DELETE [3]"."""
    found = VERB.match(action)
    rest = action[found.end() :] if found else ""
    return rest if Entry("", rest).place is not None else None


def _split_actions(line: str) -> list[str]:
    """``ACTION: DELETE; INDEX: 0; ACTION: NOOP`` as one text an action, each with a colon after ``ACTION``."""
    actions = _NEXT_ACTION.split(line)
    if _VERB_LINE.match(line):
        actions = [part for action in actions for part in _NEXT_VERB.split(action)]
    return [_ACTION_WORDS.sub(r"\1: ", action) for action in actions]


def _split_line(line: str) -> Iterator[str]:
    """``ACTION: UPDATE INDEX: 2 MEMORY: text`` as three lines; a line of memory text as it is."""
    while True:
        found = _KEY_LINE.match(line)
        inner = found and _INNER_KEY.search(line, found.start("value"))
        if not found or not inner or not _is_complete(found, line[found.start("value") : inner.start()]):
            yield line
            return
        yield line[: inner.start()]
        line = line[inner.end() :]


def _is_complete(found: re.Match[str], value: str) -> bool:
    name = _name(found["key"])
    return (name == "action" and read_verb(value) is not None) or (name == "index" and _is_index(value.rstrip(" ,;|(")))


def _key(line: str, *, in_text: bool, waiting: bool) -> _Key | None:
    """The key and value of a line; None for any other, and for one that reads as part of a memory text.

    ``waiting``: an action still has no memory text. Only then are ``CONTENT`` and ``TEXT`` keys, and is a memory set
    off by ``-`` or ``=``.
    """
    found = _KEY_LINE.match(line)
    if found is None:
        return None
    name, value = _name(found["key"]), _unmarked(found)
    if name == "text" and (in_text or not waiting):
        return None
    if name == "action":
        certain = read_verb(value) is not None
    elif name == "index":
        certain = _is_index(value)
    else:
        certain = found["sign"] is not None or (waiting and name != "reasoning")
    return _Key("memory" if name == "text" else name, value) if certain or (found["sign"] and not in_text) else None


def _verb_entry(line: str, *, in_text: bool) -> Entry | None:
    """The action of a line that begins with its type: ``INSERT: text``, ``UPDATE 2: text``, ``DELETE: 2``."""
    found = _VERB_LINE.fullmatch(line)
    if found is None or (found["value"] is None and found["place"] is None):
        return None
    value, index = (_unmarked(found) if found["value"] is not None else ""), found["place"]
    if found["verb"] == "DELETE":
        index = index or value
        return Entry("DELETE", index or None) if not in_text or _is_index(index) else None
    if in_text and found["verb"] == "UPDATE" and index is None:
        return None
    return Entry(found["verb"], index, value or None)


def _name(key: str) -> str:
    """action, index, memory, updated_memory, text (of CONTENT and TEXT) or reasoning."""
    name = re.sub(r"[ _-]", "", key.lower())
    if "index" in name:
        return "index"
    if "memory" in name:
        return "updated_memory" if name.startswith("updated") else "memory"
    return {"content": "text", "text": "text", "reasoning": "reasoning"}.get(name, "action")


def _is_index(value: str) -> bool:
    """A number, or a word for none."""
    return Entry("", value).place is not None or re.sub(r"\W", "", value).lower() in ("", "none", "null", "na")


def _unmarked(found: re.Match[str]) -> str:
    """The value, without the other half of Markdown emphasis that began before the key."""
    mark, value = found["mark"], found["value"].strip()
    if not mark or found["closed"]:
        return value
    return value.removeprefix(mark).strip() if value.startswith(mark) else value.removesuffix(mark).strip()
