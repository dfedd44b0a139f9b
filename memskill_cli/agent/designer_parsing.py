"""The designer's replies as data: JSON with chatter around it and small errors mended, its shape checked.

Texts come out without control characters and lone surrogates, so that they can be stored and shown anywhere. What is
wrong with a reply as a whole is an UnreadableReplyError whose message the model is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memskill_cli.agent.reply_blocks import MAX_SAID
from memskill_cli.agent.reply_json import MAX_OPENINGS, mended
from memskill_cli.errors import UnreadableReplyError

CAUSES = ("storage", "retrieval", "quality")
_MAX_TEXT = 1000  # characters of one text of an analysis; it is shown to the model again
_OPENING = re.compile(r"\{(?=\s*[\"'}\w])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TEXT = {"type": ["string", "number", "null"]}
_ANALYSIS = {
    "required": ["patterns"],
    "properties": {
        "patterns": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["cause"],
                "properties": {
                    "name": _TEXT,
                    "cases": {"type": ["array", "string", "integer", "null"]},
                    "cause": {"type": "string", "pattern": "(?i)storage|retrieval|quality"},
                    "explanation": _TEXT,
                    "fix": _TEXT,
                },
            },
        },
        "recommendations": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["change"],
                "properties": {"change": {"type": "string"}, "skill": _TEXT, "why": _TEXT, "priority": _TEXT},
            },
        },
        "summary": _TEXT,
    },
}
_REFINEMENT = {
    "required": ["changes"],
    "properties": {"summary": _TEXT, "changes": {"type": "array", "items": {"type": "object"}}},
}


@dataclass(frozen=True, slots=True)
class Refinement:
    """A refinement as the model wrote it, its changes unjudged: dicts whose keys are in lower case."""

    summary: str
    changes: tuple[dict[str, Any], ...]


def parse_analysis(reply: str, cases: int, *, cut: bool = False) -> dict[str, Any]:
    """The analysis (or reflection) in a reply: ``patterns``, ``recommendations`` and ``summary`` as in the contract.

    ``cases`` is how many were shown, numbered from 1: other numbers are left out. Of a reply that the token limit has
    ``cut`` only JSON that is whole is read. Raises UnreadableReplyError for
    anything without patterns, or with a pattern whose cause is none of :data:`CAUSES`.
    """
    found = _read(reply, "patterns", _ANALYSIS, cut)
    return {
        "patterns": [
            {
                "name": _short(item.get("name")),
                "cases": _numbers(item.get("cases"), cases),
                "cause": next(cause for cause in CAUSES if cause in item["cause"].lower()),
                "explanation": _short(item.get("explanation")),
                "fix": _short(item.get("fix")),
            }
            for item in found["patterns"]
        ],
        "recommendations": [
            {
                "change": item["change"].strip().lower(),
                **{key: _short(item.get(key)) for key in ("skill", "why", "priority")},
            }
            for item in found.get("recommendations") or []
        ],
        "summary": _short(found.get("summary")),
    }


def parse_refinement(reply: str, *, cut: bool = False) -> Refinement:
    """The refinement in a reply; ``cut`` as above. Raises UnreadableReplyError if there is no list of changes."""
    found = _read(reply, "changes", _REFINEMENT, cut)
    return Refinement(_short(found.get("summary")), tuple(found["changes"]))


def _read(text: str, key: str, schema: dict[str, Any], cut: bool) -> dict[str, Any]:
    """The last object with ``key`` in a reply, of the shape that ``schema`` describes."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if len(text) > MAX_SAID:
        raise UnreadableReplyError(f"{len(text)} characters, at most {MAX_SAID} are read")
    sound = [(value, end) for value, end in _objects(text) if key in value]
    rest = text[sound[-1][1] :] if sound else text  # a sound draft does not hide a final version with an error
    mended = [] if cut else [value for value in _mended(rest, key) if key in value]
    found = [value for value, _ in sound] + mended
    if not found and cut:
        raise UnreadableReplyError(f'the reply was cut by the token limit before its JSON with "{key}" was complete')
    if not found:
        raise UnreadableReplyError(f'expected a JSON object with "{key}", found none in {text.strip()[:80]!r}')
    if error := best_match(Draft202012Validator(schema).iter_errors(found[-1])):
        raise UnreadableReplyError(f"at {error.json_path}: {_cut(error.message, 200)}")
    return found[-1]


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Every JSON object in ``text`` that is without errors and in no other, and where it ends."""
    at = false = 0
    while false <= MAX_OPENINGS and (opening := _OPENING.search(text, at)):
        at = opening.start() + 1
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(text, opening.start())
            yield _clean(value), at
        except ValueError:
            false += 1
        except RecursionError:  # no reply of ours nests a thousand deep
            return


def _mended(text: str, key: str) -> list[dict[str, Any]]:
    """The objects that a lenient reader makes of a text with ``key`` in it that is not quite JSON."""
    if key not in text.lower():
        return []
    try:
        value = _clean(mended(text[max(text.find("{"), 0) :]))
    except RecursionError:
        return []
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def _clean(value: Any) -> Any:
    """``value`` with keys in lower case and texts that can be stored and shown."""
    if isinstance(value, dict):
        return {_clean(str(key)).strip().lower(): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, str):
        text = value.replace("\r\n", "\n").encode("utf-8", "replace").decode()
        return _CONTROL.sub("", text)
    return value


def _numbers(value: Any, cases: int) -> list[int]:
    """Case numbers, each once, of a list of numbers or texts ("case 3"), or of one of these."""
    found = re.findall(r"\d{1,6}", " ".join(map(str, value)) if isinstance(value, list) else str(value))
    return sorted({int(number) for number in found} & set(range(1, cases + 1)))


def _short(value: Any) -> str:
    return "" if value is None else _cut(" ".join(str(value).split()), _MAX_TEXT)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
