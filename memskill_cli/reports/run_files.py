"""Reading what a run left behind, whatever became of it.

A report is often wanted most when something went wrong. So nothing here raises for what a file holds: a torn line, a
missing file or a value of the wrong kind is passed over, and said in ``notes``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

Row = Mapping[str, Any]
HUGE = 1e15
"""No number of a run is as large; one that is comes from a damaged file."""


class Files:
    """The files below ``folder``; ``notes`` collects in plain words what could not be read of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The whole lines of a JSON-lines file, one at a time; none if there is no file."""
        file, torn = self.folder / name, 0
        try:
            with file.open("rb") as lines:
                for line in lines:
                    row = _parsed(line)
                    if isinstance(row, dict):
                        yield row
                    elif line.strip():
                        torn += 1
        except FileNotFoundError:
            self._note(f"{name} is not there")
        except OSError as error:
            self._note(f"{name} cannot be read: {error.strerror}")
        if torn:
            self._note(
                f"{name}: {torn} line{'s' * (torn > 1)} cannot be read and {'are' if torn > 1 else 'is'} left out"
            )

    def table(self, name: str) -> dict[str, Any]:
        """A JSON object, empty if the file is missing or damaged."""
        try:
            found = _parsed((self.folder / name).read_bytes())
        except OSError as error:
            self._note(f"{name} is not there" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}")
            return {}
        if isinstance(found, dict):
            return found
        self._note(f"{name} is damaged and cannot be read")
        return {}

    def text(self, name: str) -> str:
        try:
            return (self.folder / name).read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def settings(self, name: str = "config.toml") -> dict[str, Any]:
        """A TOML table, empty if the file is missing or damaged."""
        try:
            return tomllib.loads(self.text(name))
        except ValueError:  # broken TOML, or a number beyond all bounds
            self._note(f"{name} is damaged and cannot be read")
            return {}

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def number(row: Row, name: str) -> float | None:
    """A number that makes sense, else None."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < HUGE:
        return None
    return float(value)


def count(row: Row, name: str) -> int:
    """A number of things: 0 if it is missing or makes no sense."""
    value = number(row, name)
    return max(0, int(value)) if value is not None else 0


def words(row: Row, name: str) -> str:
    """A text; a number or a truth value as JSON writes it; "" for anything else."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else ""


def inner(row: Row, name: str) -> dict[str, Any]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def entries(row: Row, name: str) -> list[dict[str, Any]]:
    """The objects in a list."""
    value = row.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(row: Row, name: str) -> list[str]:
    value = row.get(name)
    return [str(item) for item in value if isinstance(item, str | int | float)] if isinstance(value, list) else []


def counts(row: Row, name: str) -> dict[str, float]:
    """A table of names to numbers of things."""
    table = inner(row, name)
    found = {key: number(table, key) for key in table}
    return {key: value for key, value in found.items() if value is not None and value > 0}


def pair(row: Row, name: str) -> tuple[float, float] | None:
    """An interval: two finite numbers in order."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = (number({"x": end}, "x") for end in value)
    return (low, high) if low is not None and high is not None and low <= high else None


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
