"""Checked reading of the records of other products: most fields are optional, and null means absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any

from memskill_cli.datasets.conversations import Message
from memskill_cli.datasets.json_records import Record
from memskill_cli.datasets.message_content import parse_time

OWNER = "owner"
"""User id of the conversations in an export of one person's account, so that all its files are of one user."""
_SHOWN = 60


class ExportRecord(Record):
    """One record of an export: a conversation, or one line of a log. Errors contain its place and a hint."""

    drops_nulls = False

    def optional(self, table: Mapping[str, Any], name: str, wanted: type, prefix: str = "") -> Any:
        """The field ``name``, None if it is absent or null. Raises DataError if it has another type."""
        value = table.get(name)
        return None if value is None else self.expect(value, wanted, f"{prefix}{name}")

    def string(self, table: Mapping[str, Any], name: str, prefix: str = "") -> str:
        """A text field without whitespace at its ends; "" if it is absent or null."""
        found: str = self.optional(table, name, str, prefix) or ""
        return found.strip()

    def objects(self, table: Mapping[str, Any], name: str, prefix: str = "") -> list[dict[str, Any]]:
        """A field that is a list of objects; [] if it is absent or null."""
        values = self.optional(table, name, list, prefix) or []
        return [self.expect(value, dict, f"{prefix}{name}[{i}]") for i, value in enumerate(values)]

    def time(
        self, table: Mapping[str, Any], name: str, prefix: str = "", zone: tzinfo | None = None
    ) -> datetime | None:
        """A time: ISO 8601, or seconds since 1970 (in UTC). None if absent or null.

        ``zone``: of text that names no zone; by default it stays naive.
        """
        try:
            time = parse_time(table.get(name))
            return time.replace(tzinfo=zone) if time and time.tzinfo is None else time
        except ValueError as error:
            self.fail(f"{prefix}{name} {error}")


def shown(text: str) -> str:
    """``text`` in quotes for a message: one line, at most 60 characters of it."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def dated(messages: Sequence[Message], time: datetime | None) -> tuple[Message, ...]:
    """``messages``; if none has a time, the first one gets that of the conversation."""
    if time is None or not messages or any(message.timestamp for message in messages):
        return tuple(messages)
    return (replace(messages[0], timestamp=time), *messages[1:])
