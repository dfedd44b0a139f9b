"""Parse and validate the designer's replies: JSON, possibly with prose around it and small errors.

Control characters and lone surrogates are removed from texts, so that they can be stored and shown anywhere. An
invalid reply raises UnreadableReplyError; the designer sends its message to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memskill_cli.agent.reply_blocks import MAX_REPLY_CHARS
from memskill_cli.agent.reply_json import MAX_OPENINGS, repair_json
from memskill_cli.errors import UnreadableReplyError

CAUSES = ("storage", "retrieval", "quality")
_MAX_TEXT = 1000  # characters per text of an analysis; a limit because later prompts repeat the analysis
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
    """A refinement as the model wrote it. ``changes`` are not validated: dicts with lower-case keys."""

    summary: str
    changes: tuple[dict[str, Any], ...]


def parse_analysis(reply: str, cases: int, *, cut: bool = False) -> dict[str, Any]:
    """The analysis (or reflection) in a reply: a dict with ``patterns``, ``recommendations`` and ``summary``.

    ``cases`` is the number of cases in the prompt, numbered from 1; other case numbers are dropped. If the token limit
    ``cut`` the reply, only complete JSON is read. Raises UnreadableReplyError if there are no patterns, or if the cause
    of a pattern is not in :data:`CAUSES`.
    """
    found = _read(reply, "patterns", _ANALYSIS, cut)
    return {
        "patterns": [
            {
                "name": _shorten(item.get("name")),
                "cases": _case_numbers(item.get("cases"), cases),
                "cause": next(cause for cause in CAUSES if cause in item["cause"].lower()),
                "explanation": _shorten(item.get("explanation")),
                "fix": _shorten(item.get("fix")),
            }
            for item in found["patterns"]
        ],
        "recommendations": [
            {
                "change": item["change"].strip().lower(),
                **{key: _shorten(item.get(key)) for key in ("skill", "why", "priority")},
            }
            for item in found.get("recommendations") or []
        ],
        "summary": _shorten(found.get("summary")),
    }


def parse_refinement(reply: str, *, cut: bool = False) -> Refinement:
    """The refinement in a reply; ``cut`` as in :func:`parse_analysis`.

    Raises UnreadableReplyError if there is no list of changes.
    """
    found = _read(reply, "changes", _REFINEMENT, cut)
    return Refinement(_shorten(found.get("summary")), tuple(found["changes"]))


def _read(text: str, key: str, schema: dict[str, Any], cut: bool) -> dict[str, Any]:
    """The last object with ``key`` in a reply, validated against the JSON schema ``schema``."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if len(text) > MAX_REPLY_CHARS:
        raise UnreadableReplyError(f"{len(text)} characters, at most {MAX_REPLY_CHARS} are read")
    valid = [(value, end) for value, end in _objects(text) if key in value]
    rest = text[valid[-1][1] :] if valid else text  # an invalid final version after a valid draft is repaired too
    repaired = [] if cut else [value for value in _repaired(rest, key) if key in value]
    found = [value for value, _ in valid] + repaired
    if not found and cut:
        raise UnreadableReplyError(f'the reply was cut by the token limit before its JSON with "{key}" was complete')
    if not found:
        raise UnreadableReplyError(f'expected a JSON object with "{key}", found none in {text.strip()[:80]!r}')
    if error := best_match(Draft202012Validator(schema).iter_errors(found[-1])):
        raise UnreadableReplyError(f"at {error.json_path}: {_truncate(error.message, 200)}")
    return found[-1]


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Every valid top-level JSON object in ``text``, and the position of its end."""
    at = failed = 0
    while failed <= MAX_OPENINGS and (opening := _OPENING.search(text, at)):
        at = opening.start() + 1
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(text, opening.start())
            yield _clean(value), at
        except ValueError:
            failed += 1
        except RecursionError:  # a valid reply has only a few levels
            return


def _repaired(text: str, key: str) -> list[dict[str, Any]]:
    """The objects of a text that is almost JSON; none if the text does not contain ``key``."""
    if key not in text.lower():
        return []
    try:
        value = _clean(repair_json(text[max(text.find("{"), 0) :]))
    except RecursionError:
        return []
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def _clean(value: Any) -> Any:
    """``value`` with lower-case keys, and texts without control characters and lone surrogates."""
    if isinstance(value, dict):
        return {_clean(str(key)).strip().lower(): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, str):
        text = value.replace("\r\n", "\n").encode("utf-8", "replace").decode()
        return _CONTROL.sub("", text)
    return value


def _case_numbers(value: Any, cases: int) -> list[int]:
    """The distinct case numbers in a number, a text ("case 3") or a list of these."""
    found = re.findall(r"\d{1,6}", " ".join(map(str, value)) if isinstance(value, list) else str(value))
    return sorted({int(number) for number in found} & set(range(1, cases + 1)))


def _shorten(value: Any) -> str:
    return "" if value is None else _truncate(" ".join(str(value).split()), _MAX_TEXT)


def _truncate(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
