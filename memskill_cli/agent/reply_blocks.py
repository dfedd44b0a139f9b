"""Read memory actions from replies in blocks of ``ACTION: …`` lines, or with one line per action (``INSERT: …``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from memskill_cli.agent.reply_entry import FENCE, VERB, Entry, read_verb
from memskill_cli.types import Action

MAX_REPLY_CHARS = 200_000
"""Longest reply that is read, in characters. Parsing time can grow with the square of the length."""
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
    (?: \s* (?P<position>\[?\#?\d{{1,9}}\]?) (?=\s*[:：]|\s*\Z) )? (?: \s*[:：](?P<value>.*) )?""",
    re.VERBOSE | re.DOTALL,
)
"""``INSERT: text``, ``UPDATE 2: text``, ``DELETE: 2``. Capitals only: "Update: I have looked" is prose."""
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
    """Reads line by line. ``open``: the next line may continue the memory text of the last entry."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open = False

    def read(self, line: str) -> None:
        if key := _key(line, in_text=self.open, waiting=self._lacks_memory()):
            self.open = False
            self._add_key(key)
        elif entry := _verb_entry(line, in_text=self.open):
            self.entries.append(entry)
            self.open = entry.memory is not None
        elif self.open:
            self._continue_text(line)
        elif bare := _BARE_VERB.fullmatch(line):
            self._add_key(_Key("action", bare[1]))

    def _lacks_memory(self) -> bool:
        """Whether the last entry has no memory text yet."""
        return bool(self.entries) and self.entries[-1].memory is None

    def _continue_text(self, line: str) -> None:
        """Append a line to the open text. A blank line ends the text, unless it is empty or ends with a colon."""
        text = self.entries[-1].memory or ""
        if FENCE.match(line) or (not line.strip() and text.strip() and not text.rstrip().endswith(":")):
            self.open = False
        else:
            self.entries[-1].memory = f"{text}\n{line}"

    def _add_key(self, key: _Key) -> None:
        last = self.entries[-1] if self.entries else None
        if key.name == "action":
            if last == Entry(""):  # "ACTION:" with its type on the next line
                self.entries.pop()
            self.entries.append(Entry(key.value, index=_inline_index(key.value)))
        elif last is None or key.name == "reasoning":
            return
        elif key.name == "index":
            if last.index is not None and last.verb is Action.UPDATE and last.memory is None:
                last.index = f"{last.index}, {key.value}"  # two indices for one text: rejected later as a bad index
                return
            if last.index is not None and last.verb in (Action.UPDATE, Action.DELETE):
                last = self._append(Entry(last.action))
            last.index = key.value
        else:
            if last.memory is not None and key.name == "memory" and last.verb in (Action.INSERT, Action.UPDATE):
                last = self._append(Entry(last.action, last.index))
            last.memory, self.open = key.value, True

    def _append(self, entry: Entry) -> Entry:
        """Begin a second action of the same type, because a field occurred twice."""
        self.entries.append(entry)
        return entry


def _inline_index(action: str) -> str | None:
    """The index on the line of the action type, as in "DELETE [3]"; None if there is none."""
    found = VERB.match(action)
    rest = action[found.end() :] if found else ""
    return rest if Entry("", rest).position is not None else None


def _split_actions(line: str) -> list[str]:
    """Split ``ACTION: DELETE; INDEX: 0; ACTION: NOOP`` into one text per action, each with a colon after ``ACTION``."""
    actions = _NEXT_ACTION.split(line)
    if _VERB_LINE.match(line):
        actions = [part for action in actions for part in _NEXT_VERB.split(action)]
    return [_ACTION_WORDS.sub(r"\1: ", action) for action in actions]


def _split_line(line: str) -> Iterator[str]:
    """Split ``ACTION: UPDATE INDEX: 2 MEMORY: text`` into three lines; leave a line of memory text unchanged."""
    while True:
        found = _KEY_LINE.match(line)
        inner = found and _INNER_KEY.search(line, found.start("value"))
        if not found or not inner or not _is_complete(found, line[found.start("value") : inner.start()]):
            yield line
            return
        yield line[: inner.start()]
        line = line[inner.end() :]


def _is_complete(found: re.Match[str], value: str) -> bool:
    name = _canonical_key(found["key"])
    return (name == "action" and read_verb(value) is not None) or (name == "index" and _is_index(value.rstrip(" ,;|(")))


def _key(line: str, *, in_text: bool, waiting: bool) -> _Key | None:
    """The key and value of a line; None for a line without a key, and for one that belongs to a memory text.

    ``waiting``: the last action has no memory text yet. Only then ``CONTENT`` and ``TEXT`` are keys, and ``-`` or
    ``=`` may separate the key of a memory from its text.
    """
    found = _KEY_LINE.match(line)
    if found is None:
        return None
    name, value = _canonical_key(found["key"]), _strip_emphasis(found)
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
    """The action of a line that begins with an action type: ``INSERT: text``, ``UPDATE 2: text``, ``DELETE: 2``."""
    found = _VERB_LINE.fullmatch(line)
    if found is None or (found["value"] is None and found["position"] is None):
        return None
    value, index = (_strip_emphasis(found) if found["value"] is not None else ""), found["position"]
    if found["verb"] == "DELETE":
        index = index or value
        return Entry("DELETE", index or None) if not in_text or _is_index(index) else None
    if in_text and found["verb"] == "UPDATE" and index is None:
        return None
    return Entry(found["verb"], index, value or None)


def _canonical_key(key: str) -> str:
    """The canonical key: action, index, memory, updated_memory, text (for CONTENT and TEXT) or reasoning."""
    name = re.sub(r"[ _-]", "", key.lower())
    if "index" in name:
        return "index"
    if "memory" in name:
        return "updated_memory" if name.startswith("updated") else "memory"
    return {"content": "text", "text": "text", "reasoning": "reasoning"}.get(name, "action")


def _is_index(value: str) -> bool:
    """Whether ``value`` is a number, empty, or a word for "no index" (none, null, n/a)."""
    return Entry("", value).position is not None or re.sub(r"\W", "", value).lower() in ("", "none", "null", "na")


def _strip_emphasis(found: re.Match[str]) -> str:
    """The value without the closing mark of Markdown emphasis that opened before the key."""
    mark, value = found["mark"], found["value"].strip()
    if not mark or found["closed"]:
        return value
    return value.removeprefix(mark).strip() if value.startswith(mark) else value.removesuffix(mark).strip()
