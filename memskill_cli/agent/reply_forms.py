"""The two forms of an executor's reply, blocks and JSON, as entries: what a model wrote for each action, unjudged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from memskill_cli.records import Action

_THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"\s*(?:```|~~~)")
_KEYS = r"(?:memory[ _-]?index|memory[ _-]?item|updated[ _-]?memory|memory|index|action|reasoning)"
_KEY_LINE = re.compile(
    rf"""[\s>\#]* (?:[-*+•]\s+)? (?:\(?\d{{1,3}}[.):]\s*)? (?P<mark>[*_`]{{0,3}})
    (?P<key>{_KEYS}) (?:\s*\#?\d{{1,3}})? (?P<closed>[*_`]{{0,3}})
    (?: \s*(?P<sign>[:：]) | \s*= | \s+[-–—](?=\s) ) (?P<value>.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_INNER_KEY = re.compile(rf"(?<=[\s,;|(])[*_`]{{0,3}}(?={_KEYS}[*_`]{{0,3}}\s?[:：])", re.IGNORECASE)
_BARE_VERB = re.compile(r"[\s>#*_`(\[-]*(insert|update|delete|no[-_ ]?op)[\s*_`)\].]*", re.IGNORECASE)
_VERB = re.compile(r"[\s*_`\"'\[(<{]*(insert|update|delete|no[-_ ]?op|skip|none)(?![\w-])", re.IGNORECASE)
_CHOICE = re.compile(r"\s*(?:[/|,]|\bor\b)\s*(?:insert|update|delete|no[-_ ]?op)\b", re.IGNORECASE)
_MINUS = r"\-−–—"
_INDEX = re.compile(
    rf"[^\w{_MINUS}]{{0,8}}(?:memory|item|index)?[^\w{_MINUS}]{{0,8}}(-?\d{{1,9}})\W*(?:\(.*|[:{_MINUS}]\s.*)?",
    re.IGNORECASE | re.DOTALL,
)
_OPENING = re.compile(r"[{\[](?=\s*[{\"'}\]])")
_JSON_START = re.compile(r"\s*(?:(?:```|~~~)\w*\s*)?[{\[]")


@dataclass(slots=True)
class Entry:
    """The fields of one action as the model wrote them; None is a field that it did not write."""

    action: str
    index: str | None = None
    memory: str | None = None

    @property
    def verb(self) -> Action | None:
        """The action type; None for an unknown one and for a choice that was not made ("INSERT | UPDATE")."""
        return read_verb(self.action)

    @property
    def place(self) -> int | None:
        """The index: 3 of "3", "[3]", "3.", "#3", "memory 3" or "3 (the flat)"; None of anything else."""
        found = _INDEX.fullmatch((self.index or "").strip())
        return int(found[1]) if found else None


def read_verb(text: str) -> Action | None:
    found = _VERB.match(text)
    if found is None or _CHOICE.match(text, found.end()):
        return None
    word = found[1].lower()
    return Action(word) if word in ("insert", "update", "delete") else Action.NOOP


def read_entries(reply: str) -> list[Entry] | None:
    """The entries of a reply, in order; None if there is nothing in it that looks like an action.

    Blocks are looked for first, unless the reply begins with sound JSON.
    """
    blocks = block_entries(reply)
    if any(entry.verb for entry in blocks):
        return (_sound_json(reply)[0] if _JSON_START.match(reply) else None) or blocks
    entries = json_entries(reply)
    return entries if entries is not None else blocks or None


def without_thoughts(text: str) -> str:
    """``text`` without what is inside <think> tags; one without its partner reaches to the end, or from the start.

    A tag inside the line of a memory ("MEMORY: Bo asked what <think> does") is text.
    """
    kept: list[str] = []
    start, thinking, quoted = 0, False, False
    for tag in _THINK_TAG.finditer(text):
        closing = bool(tag[1])
        if not closing and not thinking:
            line = _KEY_LINE.match(text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()])
            quoted = line is not None and "memory" in line["key"].lower()
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


# --- blocks ------------------------------------------------------------------------------------------------------


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
        if _FENCE.match(line) or (not line.strip() and text.strip() and not text.rstrip().endswith(":")):
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
    found = _VERB.match(action)
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


# --- JSON --------------------------------------------------------------------------------------------------------


def json_entries(reply: str) -> list[Entry] | None:
    """The entries of JSON anywhere in the reply, with small errors mended; None if it has no actions in JSON."""
    entries, broken = _sound_json(reply)
    mended = _mended(broken) if "action" in broken.lower() else None
    return mended if mended is not None and len(mended) > len(entries or []) else entries


def _sound_json(reply: str) -> tuple[list[Entry] | None, str]:
    """The entries of all JSON without errors, and the rest of the text from the first JSON with errors on."""
    text = "\n".join(line for line in reply.split("\n") if not _FENCE.match(line) or "{" in line or "[" in line)
    entries: list[Entry] | None = None
    at, broken = 0, ""
    while opening := _OPENING.search(text, at):
        at = opening.start() + 1
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text, opening.start())
        except ValueError:
            broken = broken or text[opening.start() :]
            continue
        except RecursionError:  # no reply of ours nests a thousand deep
            return entries, ""
        if (found := _from_json(value)) is not None:
            entries, at = [*(entries or []), *found], end
    return entries, broken


def _mended(text: str) -> list[Entry] | None:
    import json_repair

    try:
        return _from_json(json_repair.loads(text))
    except Exception:  # whatever the library makes of wild text, a mending that fails is none
        return None


def _from_json(value: Any) -> list[Entry] | None:
    """The entries of a decoded value: {"actions": […]}, one action, or a list of actions; None if it is none."""
    if isinstance(value, list):
        found = [_from_json(item) for item in value]
        return [entry for entries in found for entry in entries or []] if any(e is not None for e in found) else None
    if not isinstance(value, dict):
        return None
    fields = {re.sub(r"\W", "_", str(key).strip().lower()): item for key, item in value.items()}
    actions = fields.get("actions", fields.get("action"))
    if actions is None:
        return None
    if isinstance(actions, dict | list):
        items = actions if isinstance(actions, list) else [actions]
        return [entry for item in items for entry in _from_json(item) or _bare(item)]
    index = next((fields[name] for name in ("index", "memory_index") if fields.get(name) is not None), None)
    names = ("memory", "updated_memory", "memory_item", "text")
    memory = next((fields[name] for name in names if isinstance(fields.get(name), str)), None)
    return [Entry(str(actions), None if index is None else _whole(index), memory)]


def _bare(item: Any) -> list[Entry]:
    """ "NOOP" in place of {"action": "NOOP"}; other texts are chatter that mending swept in."""
    return [Entry(item)] if isinstance(item, str) and read_verb(item) else []


def _whole(index: Any) -> str:
    """An index as text: 3 of 3, 3.0 and "3", but not of true."""
    return str(int(index)) if isinstance(index, float) and index.is_integer() else str(index)
