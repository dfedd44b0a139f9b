"""Replies in blocks of ``ACTION: …`` lines, and what is not to be read in any reply: the model's thoughts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from memskill_cli.agent.reply_entry import FENCE, VERB, Entry, read_verb
from memskill_cli.records import Action

MAX_SAID = 200_000
"""Characters of a reply, thoughts apart, beyond which it is not read: what is read takes time, some of it squared."""
_LINE_OR_TAG = re.compile(r"\n|<(/?)think(?:ing)?>", re.IGNORECASE)
_KEYS = r"(?:memory[ _-]?index|memory[ _-]?item|updated[ _-]?memory|memory|index|action|reasoning)"
_KEY_LINE = re.compile(
    rf"""[\s>\#]* (?:[-*+•]\s+)? (?:\(?\d{{1,3}}[.):]\s*)? (?P<mark>[*_`]{{0,3}})
    (?P<key>{_KEYS}) (?:\s*\#?\d{{1,3}})? (?P<closed>[*_`]{{0,3}})
    (?: \s*(?P<sign>[:：]) | \s*= | \s+[-–—](?=\s) ) (?P<value>.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_INNER_KEY = re.compile(rf"(?<=[\s,;|(])[*_`]{{0,3}}(?={_KEYS}[*_`]{{0,3}}\s?[:：])", re.IGNORECASE)
_BARE_VERB = re.compile(r"[\s>#*_`(\[-]*(insert|update|delete|no[-_ ]?op)[\s*_`)\].]*", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """``text`` without what is inside <think> tags; one without its partner reaches to the end, or from the start.

    A tag inside the line of a memory ("MEMORY: Bo asked what <think> does") is text.
    """
    kept: list[str] = []
    start, thinking, quoted = 0, False, False
    line, in_memory = 0, None
    for tag in _LINE_OR_TAG.finditer(text):
        if tag[0] == "\n":
            line, in_memory = tag.end(), None
            continue
        closing = bool(tag[1])
        if not closing and not thinking:
            if in_memory is None:  # what stands before a line's first tag decides for all
                key = _KEY_LINE.match(text[line : tag.start()])
                in_memory = key is not None and "memory" in key["key"].lower()
            quoted = in_memory
            if not quoted:
                kept.append(text[start : tag.start()])
                thinking = True
        elif closing and quoted:
            quoted = False
        elif closing:
            if not thinking:
                kept.clear()
            start, thinking = tag.end(), False
    return "".join(kept if thinking else [*kept, text[start:]])


class _Key(NamedTuple):
    name: str  # action, index, memory, updated_memory, reasoning
    value: str


def block_entries(reply: str) -> list[Entry]:
    """The entries of ``ACTION: …`` blocks."""
    reader = _BlockReader()
    for line in reply.replace("\r\n", "\n").split("\n"):
        for part in _split_line(line):
            reader.read(part)
    return [entry for entry in reader.entries if entry != Entry("")]


class _BlockReader:
    """Reads line by line. ``lines`` is the memory text that goes on, None when none does."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open = False

    def read(self, line: str) -> None:
        if key := _key(line, in_text=self.open):
            self.open = False
            self._take(key)
        elif self.open:
            self._go_on(line)
        elif bare := _BARE_VERB.fullmatch(line):
            self._take(_Key("action", bare[1]))

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


def _key(line: str, *, in_text: bool) -> _Key | None:
    """The key and value of a line; None for any other, and for one that reads as part of a memory text."""
    found = _KEY_LINE.match(line)
    if found is None:
        return None
    name, value = _name(found["key"]), _unmarked(found)
    if name == "action":
        certain = read_verb(value) is not None
    elif name == "index":
        certain = _is_index(value)
    else:
        certain = found["sign"] is not None
    return _Key(name, value) if certain or (found["sign"] and not in_text) else None


def _name(key: str) -> str:
    name = re.sub(r"[ -]", "_", key.lower())
    return {"memory_index": "index", "memoryindex": "index", "memory_item": "memory", "memoryitem": "memory"}.get(
        name, "updated_memory" if name.startswith("updated") else name
    )


def _is_index(value: str) -> bool:
    """A number, or a word for none."""
    return Entry("", value).place is not None or re.sub(r"\W", "", value).lower() in ("", "none", "null", "na")


def _unmarked(found: re.Match[str]) -> str:
    """The value, without the other half of Markdown emphasis that began before the key."""
    mark, value = found["mark"], found["value"].strip()
    if not mark or found["closed"]:
        return value
    return value.removeprefix(mark).strip() if value.startswith(mark) else value.removesuffix(mark).strip()
