"""Reading a skill bank that a person may have edited: every error has its line, its place and its reason.

``schema.json`` beside this file is the shape; what a schema cannot say (names that occur twice, new names that are
unknown) is checked here.
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
Place = tuple[str | int, ...]
"""Keys and indices from the top of a JSON document to a value in it."""

MAX_FILE = 8_000_000
"""Bytes of a bank's file that is read: several hundred skills of the largest size."""
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


class Fault(NamedTuple):
    """Something wrong with the value at ``place``; ``hint`` is what may have been meant."""

    place: Place
    reason: str
    hint: str = ""


def read_text(file: Path, most: int = MAX_FILE) -> str:
    """The text of a file of at most ``most`` bytes. Raises SkillBankError, which names it, if it cannot be had."""
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
        if len(data) > most:
            raise SkillBankError(f"{file}: larger than {most:,} bytes, so it is not read")
        text = data.decode()
    except FileNotFoundError:
        raise SkillBankError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise SkillBankError(f"{file}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SkillBankError(f"{file}: {error.strerror}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bank(text: str, where: str, at: Place = ()) -> dict[str, Any]:
    """The bank at ``at`` in JSON ``text``, checked. Raises SkillBankError "<where>:<line>: <reason>"."""
    data = _parse(text, where)
    for key in at:
        data = data[key] if isinstance(data, dict) and key in data else None
    newer = isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT
    if newer:
        raise SkillBankError(
            f"{where}: written in format {data['format']}, this memskill reads up to {FORMAT}",
            hint="upgrade with: pip install --upgrade memskill",
        )
    found = list(_schema_faults(data)) or list(_sense_faults(data))
    if found:
        lines = line_numbers(text)
        # A misspelt key explains the missing one, so it comes first; else the first in the file.
        fault = min(found, key=lambda fault: (not fault.hint, lines.get(at + fault.place, 1)))
        line = lines.get(at + fault.place, 1)
        raise SkillBankError(f"{where}:{line}: {_path(fault.place)} {fault.reason}", hint=fault.hint)
    return data


def _parse(text: str, where: str) -> Any:
    try:
        data = json.loads(text)
        line_numbers(text)
    except json.JSONDecodeError as error:
        raise SkillBankError(f"{where}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise SkillBankError(f"{where}: not a skill bank: nested too deeply") from None
    except ValueError:  # of a whole number of thousands of digits
        raise SkillBankError(f"{where}: not a skill bank: a number is too large") from None
    return data


def _schema_faults(data: Any) -> Iterator[Fault]:
    from jsonschema import Draft202012Validator

    schema = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    for error in Draft202012Validator(schema).iter_errors(data):
        yield from _explain(error)


def _explain(error: ValidationError) -> Iterator[Fault]:
    """One of jsonschema's errors in words that name the value and what was expected."""
    place: Place = tuple(error.absolute_path)
    wanted, value = error.validator_value, error.instance
    match error.validator:
        case "required":
            missing = [name for name in wanted if name not in value]
            yield Fault(place, f"has no {missing[0]!r}")
        case "additionalProperties":
            known = error.schema["properties"]
            for name in value.keys() - known.keys():
                near = difflib.get_close_matches(name, known, n=1)
                yield Fault((*place, name), "is not a known key", f"did you mean {near[0]}?" if near else "")
        case "enum":
            yield Fault(place, f"is {_show(value)}, expected one of {', '.join(wanted)}")
        case "const":
            yield Fault(place, f"is {_show(value)}, expected {wanted}")
        case "type":
            yield Fault(place, f"is {_show(value)}, expected {_KINDS[wanted]}")
        case "minimum" | "maximum":
            yield Fault(place, f"is {_show(value)}, expected at {_BOUNDS[error.validator]} {wanted}")
        case _:
            yield Fault(place, f"has {len(value)} items, expected at {_BOUNDS[error.validator]} {wanted}")


def _sense_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """What the schema cannot say, of a bank that has its shape."""
    first: dict[str, int] = {}
    for i, skill in enumerate(data["skills"]):
        for field, reason in faults(skill["name"], skill["description"], skill["body"]):
            yield Fault(("skills", i, field), reason)
        if (before := first.setdefault(skill["name"], i)) != i:
            yield Fault(("skills", i, "name"), f"is {skill['name']!r}, which skills[{before}] is called already")
        stats = skill["stats"]
        for field, numbers in (("mean_reward", [stats["mean_reward"]]), ("recent_rewards", stats["recent_rewards"])):
            if not all(map(_finite, numbers)):
                yield Fault(("skills", i, "stats", field), "has a number that is too large")
    if len(data["skills"]) > data["capacity"]:
        yield Fault(("skills",), f"has {len(data['skills'])} skills, more than the capacity of {data['capacity']}")
    for i, name in enumerate(data["new"]):
        if name not in first:
            yield Fault(("new", i), f"is {name!r}, and no skill is called so")


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond any float
        return False


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(place: Place) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.lstrip(".") or "the file"


def line_numbers(text: str) -> dict[Place, int]:
    """The line (from 1) on which each value of a JSON text begins; for a value of an object, the line of its key.

    ``text`` is known to be JSON, as Python reads it. Raises json.JSONDecodeError for what Python lets pass: a key
    twice in one object, NaN and Infinity.
    """
    lines: dict[Place, int] = {}
    breaks = [at for at, char in enumerate(text) if char == "\n"]
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text

    def value(at: int, place: Place) -> int:
        """Walk over the value at ``at``; where it ends."""
        lines.setdefault(place, bisect(breaks, at) + 1)
        if text[at] == '"':
            return decode(text, at)[1]
        if text[at] in "{[":
            return container(at, place, closing="}" if text[at] == "{" else "]")
        if text.startswith(("NaN", "Infinity", "-Infinity"), at):
            raise json.JSONDecodeError("a number that is not finite", text, at)
        return _SCALAR.match(text, at).end()  # type: ignore[union-attr]

    def container(at: int, place: Place, closing: str) -> int:
        at, index = skip(at + 1), 0
        while text[at] != closing:
            key: str | int = index
            if closing == "}":
                start = at
                key, at = decode(text, at)
                if (*place, key) in lines:
                    raise json.JSONDecodeError(f"the key {key!r} for the second time", text, start)
                lines[*place, key] = bisect(breaks, start) + 1
                at = skip(skip(at) + 1)
            at = skip(value(at, (*place, key)))
            if text[at] == ",":
                at = skip(at + 1)
            index += 1
        return at + 1

    value(skip(0), ())
    return lines
