"""Check the kinds of values in JSON that is read back from files.

A file of a run can be edited, damaged, or come from somebody else. A value of a wrong kind is reported with its file,
line and field before anything is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from memskill_cli.errors import RunError

LARGEST = 1e15
"""Numbers of this size and above are refused: a few of them make sums infinite."""
HINT = "restore the file from a copy; or delete that line, and what it stands for is done again"
Row = dict[str, Any]


class Kind(NamedTuple):
    """A kind of value: ``what`` it is called, its types, a further test, and whether it may be missing."""

    what: str
    types: frozenset[type]
    fits: Callable[[Any], bool] | None = None
    required: bool = True

    def accepts(self, value: Any) -> bool:
        return type(value) in self.types and (value is None or self.fits is None or self.fits(value))


Fields = Mapping[str, Kind]
TEXT = Kind("a text", frozenset({str}))
FLAG = Kind("true or false", frozenset({bool}))
NUMBER = Kind("a number below 1e15", frozenset({int, float}), lambda value: -LARGEST < value < LARGEST)
AMOUNT = Kind("a number from 0 to 1e15", frozenset({int, float}), lambda value: 0 <= value < LARGEST)
COUNT = Kind("a whole number from 0 to 1e15", frozenset({int}), lambda value: 0 <= value < LARGEST)
TABLE = Kind("an object", frozenset({dict}))


def or_null(kind: Kind) -> Kind:
    """``kind``, or null."""
    return kind._replace(what=f"{kind.what} or null", types=kind.types | {type(None)})


def optional(kind: Kind) -> Kind:
    """``kind``, or null, or missing."""
    return or_null(kind)._replace(required=False)


def list_of(kind: Kind) -> Kind:
    return Kind(f"a list, each {kind.what}", frozenset({list}), lambda values: all(map(kind.accepts, values)))


def table_of(kind: Kind) -> Kind:
    """An object whose values are all of one kind."""
    return Kind(
        f"an object, each value {kind.what}", frozenset({dict}), lambda table: all(map(kind.accepts, table.values()))
    )


def with_fields(fields: Fields) -> Kind:
    """An object with these fields, and perhaps others."""
    names = ", ".join(fields)
    return Kind(f"an object with sound {names}", frozenset({dict}), lambda table: fault(table, fields) is None)


def one_of(texts: tuple[str, ...]) -> Kind:
    return Kind("one of " + ", ".join(map(repr, texts)), frozenset({str}), lambda value: value in texts)


def _is_counts(value: Any) -> bool:
    return all(map(COUNTS.accepts, value.values())) if isinstance(value, dict) else NUMBER.accepts(value)


COUNTS = Kind("a number, or an object of numbers", frozenset({int, float, dict}), _is_counts)


def fault(row: Mapping[str, Any], fields: Fields) -> str | None:
    """What is wrong with the first unsound field of ``row``; None if all are sound. Other fields are not checked."""
    for name, kind in fields.items():
        if name not in row:
            if kind.required:
                return f"{name} is missing, expected {kind.what}"
        elif not kind.accepts(row[name]):
            return f"{name} is {shown(row[name])}, expected {kind.what}"
    return None


def shown(value: Any) -> str:
    """``value`` as JSON for a message, cut to 60 characters."""
    text = orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= 60 else f"{text[:59]}…"


def check(row: Any, fields: Fields, where: str, hint: str = HINT) -> Row:
    """``row`` itself. Raises RunError, which begins with ``where``, if it is no object or a field is unsound."""
    problem = fault(row, fields) if isinstance(row, dict) else f"is {shown(row)}, expected an object"
    if problem is not None:
        raise RunError(f"{where}: {problem}", hint=hint)
    return row


def read_rows(path: Path, fields: Fields) -> Iterator[Row]:
    """The rows of a JSON-lines file, as :func:`~memskill_cli.utils.files.read_jsonl` gives them, with their ``fields``
    checked. Raises RunError, which names the file and the line."""
    for number, row in numbered_rows(path):
        if (problem := fault(row, fields)) is not None:
            raise RunError(f"{path}:{number}: {problem}", hint=HINT)
        yield row


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a JSON-lines file with their line numbers, from 1. Lines that a crash left incomplete are skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield number, row


def read_object(path: Path, fields: Fields, hint: str = "restore the file from a copy") -> Row:
    """The object in a JSON file, with its ``fields`` checked. Raises RunError, which names the file."""
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}", hint=hint) from None
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON: {error}", hint=hint) from None
    return check(content, fields, str(path), hint)
