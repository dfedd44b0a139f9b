"""Read the JSON of a benchmark field by field, so that an error can name the file, the record and the field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from memskill_cli.datasets.json_depth import DepthLimited
from memskill_cli.errors import DataError

_DEPTH = 8
"""Levels of a record in which nulls are dropped; no benchmark has more."""
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def kind(value: Any) -> str:
    """The JSON type of ``value``, for messages."""
    return "an empty list" if value == [] else _KINDS[type(value)]


def drop_nulls(value: Any, depth: int = _DEPTH) -> Any:
    """``value`` without the fields of objects that are null, changed in place, down to ``depth`` levels.

    Arrow, and so Parquet and pandas, gives all records the same fields: one that a record lacks is null.
    """
    if isinstance(value, dict):
        for name in [name for name, inner in value.items() if inner is None]:
            del value[name]
    if depth and isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            drop_nulls(inner, depth - 1)
    return value


class Record:
    """One record of a file. Errors contain ``where`` and ``hint``."""

    drops_nulls = True
    """Whether a field that is null is removed. A reader of conversations sees nulls: a message may have no content."""

    def __init__(self, where: str, record: Any, hint: str) -> None:
        self.where, self._hint = where, hint
        self.record: dict[str, Any] = self.expect(record, dict, "the record")
        if self.drops_nulls:
            drop_nulls(self.record)

    def fail(self, problem: str) -> NoReturn:
        raise DataError(f"{self.where}: {problem}", hint=self._hint)

    def field(self, table: dict[str, Any], name: str, wanted: type, prefix: str = "") -> Any:
        if name not in table:
            self.fail(f"{prefix}{name} is missing")
        return self.expect(table[name], wanted, f"{prefix}{name}")

    def text(self, table: dict[str, Any], name: str, prefix: str = "") -> str:
        """A text field that must not be empty, without whitespace at its ends."""
        found: str = self.field(table, name, str, prefix).strip()
        return found or self.fail(f"{prefix}{name} is empty")

    def expect(self, value: Any, wanted: type, place: str) -> Any:
        if not isinstance(value, wanted) or isinstance(value, bool):
            self.fail(f"{place} is {kind(value)}, expected {_KINDS[wanted]}")
        return value

    def answer(self, value: Any, place: str) -> str:
        """An answer as text. Benchmarks have years and counts as numbers."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.fail(f"{place} is {kind(value)}, expected text or a number")
        return str(value).strip() or self.fail(f"{place} is empty")


def stream(path: Path, field: str = "") -> Iterator[Any]:
    """Iterate over the records of a JSON list, or over one field of the records that have it.

    The file is never loaded as a whole. Raises DataError if it is not JSON, or not a list, or an empty list.
    """
    import ijson

    count = 0
    with path.open("rb") as file:
        first = file.read(64).lstrip()[:1]
        file.seek(0)
        try:
            bounded = DepthLimited(file, path.name)
            for value in ijson.items(bounded, f"item.{field}" if field else "item", use_float=True):
                count += 1
                yield value
        except ijson.JSONError as error:
            found = re.search(r"error: ([^\\\n]+)", str(error))
            reason = found[1] if found else type(error).__name__
            raise DataError(f"{path.name}: not JSON: {reason.strip()} (after {count} records)") from None
    if first != b"[" or not (count or field):
        what = {b"[": "an empty list", b"{": "an object", b'"': "text"}.get(first, "something else")
        raise DataError(f"{path.name}: expected a list of records, found {what}")
