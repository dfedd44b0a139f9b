"""Read the files of a run for a report, also if they are missing or damaged.

Nothing here raises for the content of a file, because a report must also work after a crash. Incomplete lines, missing
files and damaged files are skipped and listed in ``notes``; values of the wrong type count as missing.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.config import current_sections

Row = Mapping[str, Any]
HUGE = 1e15
"""Numbers from this size on are taken for damage and count as missing."""


class Files:
    """The files in ``folder``. ``notes`` lists, for display, what could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The valid lines of a JSON-lines file, one at a time; none if there is no file."""
        file, invalid = self.folder / name, 0
        try:
            with file.open("rb") as lines:
                for line in lines:
                    row = _parsed(line)
                    if isinstance(row, dict):
                        yield row
                    elif line.strip():
                        invalid += 1
        except FileNotFoundError:
            self._note(f"{name} is missing")
        except OSError as error:
            self._note(f"{name} cannot be read: {error.strerror}")
        if invalid:
            plural = invalid > 1
            self._note(f"{name}: {invalid} line{'s' * plural} cannot be read and {'are' if plural else 'is'} left out")

    def table(self, name: str) -> dict[str, Any]:
        """A JSON object, empty if the file is missing or damaged."""
        try:
            found = _parsed((self.folder / name).read_bytes())
        except OSError as error:
            self._note(f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}")
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
        """The settings in a TOML file under their current names; empty if the file is missing or damaged."""
        try:
            return current_sections(tomllib.loads(self.text(name)))
        except ValueError:  # invalid TOML, or a number out of range
            self._note(f"{name} is damaged and cannot be read")
            return {}

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def number(row: Row, name: str) -> float | None:
    """A finite number below :data:`HUGE`, else None."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < HUGE:
        return None
    return float(value)


def count(row: Row, name: str) -> int:
    """A non-negative integer; 0 if it is missing or invalid."""
    value = number(row, name)
    return max(0, int(value)) if value is not None else 0


def get_str(row: Row, name: str) -> str:
    """A text; a number or boolean in JSON notation; "" for anything else."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else ""


def get_dict(row: Row, name: str) -> dict[str, Any]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def get_dicts(row: Row, name: str) -> list[dict[str, Any]]:
    """The dicts in a list."""
    value = row.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(row: Row, name: str) -> list[str]:
    value = row.get(name)
    return [str(item) for item in value if isinstance(item, str | int | float)] if isinstance(value, list) else []


def counts(row: Row, name: str) -> dict[str, float]:
    """The positive numbers of a dict, by key."""
    table = get_dict(row, name)
    found = {key: number(table, key) for key in table}
    return {key: value for key, value in found.items() if value is not None and value > 0}


def pair(row: Row, name: str) -> tuple[float, float] | None:
    """An interval (low, high) of two finite numbers, else None."""
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
