"""Read and validate a skill bank file, possibly edited by hand. Each error gives line, JSON path and reason.

``schema.json`` in this folder is the JSON schema. This module also checks what a schema cannot express: duplicate
names, and new names that no skill has.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.skill import faults

if TYPE_CHECKING:
    from jsonschema import ValidationError

FORMAT = 1
JsonPath = tuple[str | int, ...]
"""Keys and indices from the root of a JSON document to a value in it."""

MAX_FILE = 8_000_000
"""Largest bank file that is read, in bytes: several hundred skills of the largest size."""
_BLANK = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_KINDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
}
_BOUNDS = {"minimum": "least", "maximum": "most", "minItems": "least", "maxItems": "most"}


class SchemaFault(NamedTuple):
    """An invalid value at ``path``; ``hint`` suggests a correction."""

    path: JsonPath
    reason: str
    hint: str = ""


def read_text(file: Path, max_bytes: int = MAX_FILE) -> str:
    """The text of ``file``, with ``\\n`` as line break.

    Raises SkillBankError, which names the file, if it cannot be read, is no UTF-8, or exceeds ``max_bytes``.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise SkillBankError(f"{file}: larger than the limit of {max_bytes:,} bytes")
        text = data.decode()
    except FileNotFoundError:
        raise SkillBankError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise SkillBankError(f"{file}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SkillBankError(f"{file}: {error.strerror}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bank(text: str, where: str, at: JsonPath = ()) -> dict[str, Any]:
    """The validated bank at ``at`` in the JSON ``text``. Raises SkillBankError "<where>:<line>: <reason>"."""
    data = _parse(text, where)
    for key in at:
        data = data[key] if isinstance(data, dict) and key in data else None
    newer = isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT
    if newer:
        raise SkillBankError(
            f"{where}: format {data['format']} is newer than this memskill supports ({FORMAT})",
            hint="upgrade with: pip install --upgrade memskill",
        )
    found = list(_schema_faults(data)) or list(_consistency_faults(data))
    if found:
        lines = line_numbers(text)
        # A misspelt key also causes a "missing key" fault, so it is shown first; else the first fault of the file.
        fault = min(found, key=lambda fault: (not fault.hint, lines.get(at + fault.path, 1)))
        line = lines.get(at + fault.path, 1)
        raise SkillBankError(f"{where}:{line}: {_show_path(fault.path)} {fault.reason}", hint=fault.hint)
    return data


def _parse(text: str, where: str) -> Any:
    try:
        data = json.loads(text)
        line_numbers(text)
    except json.JSONDecodeError as error:
        raise SkillBankError(f"{where}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise SkillBankError(f"{where}: not a skill bank: nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise SkillBankError(f"{where}: not a skill bank: a number is too large") from None
    return data


def _schema_faults(data: Any) -> Iterator[SchemaFault]:
    from jsonschema import Draft202012Validator

    schema = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    for error in Draft202012Validator(schema).iter_errors(data):
        yield from _explain(error)


def _explain(error: ValidationError) -> Iterator[SchemaFault]:
    """A jsonschema error as faults that name the value and what was expected."""
    path: JsonPath = tuple(error.absolute_path)
    wanted, value = error.validator_value, error.instance
    match error.validator:
        case "required":
            missing = [name for name in wanted if name not in value]
            yield SchemaFault(path, f"has no {missing[0]!r}")
        case "additionalProperties":
            known = error.schema["properties"]
            for name in value.keys() - known.keys():
                near = difflib.get_close_matches(name, known, n=1)
                yield SchemaFault((*path, name), "is not a known key", f"did you mean {near[0]}?" if near else "")
        case "enum":
            yield SchemaFault(path, f"is {_show(value)}, expected one of {', '.join(wanted)}")
        case "const":
            yield SchemaFault(path, f"is {_show(value)}, expected {wanted}")
        case "type":
            yield SchemaFault(path, f"is {_show(value)}, expected {_KINDS[wanted]}")
        case "minimum" | "maximum":
            yield SchemaFault(path, f"is {_show(value)}, expected at {_BOUNDS[error.validator]} {wanted}")
        case _:
            yield SchemaFault(path, f"has {len(value)} items, expected at {_BOUNDS[error.validator]} {wanted}")


def _consistency_faults(data: dict[str, Any]) -> Iterator[SchemaFault]:
    """Faults that the schema cannot express, in a bank that matches the schema."""
    first: dict[str, int] = {}
    for i, skill in enumerate(data["skills"]):
        for field, reason in faults(skill["name"], skill["description"], skill["body"]):
            yield SchemaFault(("skills", i, field), reason)
        if (before := first.setdefault(skill["name"], i)) != i:
            yield SchemaFault(("skills", i, "name"), f"is {skill['name']!r}, already the name of skills[{before}]")
        stats = skill["stats"]
        for field, numbers in (("mean_reward", [stats["mean_reward"]]), ("recent_rewards", stats["recent_rewards"])):
            if not all(map(_finite, numbers)):
                yield SchemaFault(("skills", i, "stats", field), "has a number that is too large")
    if len(data["skills"]) > data["capacity"]:
        yield SchemaFault(
            ("skills",), f"has {len(data['skills'])} skills, more than the capacity of {data['capacity']}"
        )
    for i, name in enumerate(data["new"]):
        if name not in first:
            yield SchemaFault(("new", i), f"is {name!r}, which is not the name of a skill")


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer too large for a float
        return False


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _show_path(path: JsonPath) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.lstrip(".") or "the file"


def line_numbers(text: str) -> dict[JsonPath, int]:
    """The line (from 1) where each value of a JSON text begins; for a value of an object, the line of its key.

    Python's json module must accept ``text``. Raises json.JSONDecodeError for what that module tolerates: duplicate
    keys in an object, NaN and Infinity.
    """
    lines: dict[JsonPath, int] = {}
    breaks = [at for at, char in enumerate(text) if char == "\n"]
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # the pattern matches the empty string

    def value(at: int, path: JsonPath) -> int:
        """Record the lines of the value at ``at``; returns the position after it."""
        lines.setdefault(path, bisect(breaks, at) + 1)
        if text[at] == '"':
            return decode(text, at)[1]
        if text[at] in "{[":
            return container(at, path, closing="}" if text[at] == "{" else "]")
        if text.startswith(("NaN", "Infinity", "-Infinity"), at):
            raise json.JSONDecodeError("a number that is not finite", text, at)
        return _SCALAR.match(text, at).end()  # type: ignore[union-attr]

    def container(at: int, path: JsonPath, closing: str) -> int:
        at, index = skip(at + 1), 0
        while text[at] != closing:
            key: str | int = index
            if closing == "}":
                start = at
                key, at = decode(text, at)
                if (*path, key) in lines:
                    raise json.JSONDecodeError(f"duplicate key {key!r}", text, start)
                lines[*path, key] = bisect(breaks, start) + 1
                at = skip(skip(at) + 1)
            at = skip(value(at, (*path, key)))
            if text[at] == ",":
                at = skip(at + 1)
            index += 1
        return at + 1

    value(skip(0), ())
    return lines
