"""The records that importers of conversations yield, whatever product a file comes from.

An importer is a module of :mod:`memskill_cli.datasets.importers`. It reads one file into :class:`Conversation` records
and counts in :class:`Skipped` what it left out. Roles, order, time and identity are handled in one place after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

Skipped = Counter[str]
"""What a reader left out: number by kind, a plural noun for people such as ``"sidechain messages"``."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``role`` is ``user``, ``assistant``, ``system`` or ``tool``; native files may have others.

    ``content`` is text; parts that are not text are written as ``[image]``, ``[file]`` and the like. It may be empty;
    empty messages are left out and counted later.
    """

    role: str
    content: str
    name: str | None = None
    timestamp: datetime | None = None
    """With the time zone of the file; naive if the file names none."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One session of one user, with its messages in the order in which they were said."""

    user_id: str | None
    """None if the file names no user; then all its conversations are those of one user, named by the file."""
    session_id: str
    messages: tuple[Message, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    """``file:line`` or ``file: record 3``, for messages about it."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a user's conversations, with its right answers."""

    user_id: str | None
    question: str
    answers: tuple[str, ...]
    category: str = "question"
    asked: datetime | None = None
    """When it is asked; None if the file does not say."""
    evidence: tuple[str, ...] = ()
    """Session ids, or ``<session id>:<number of the message from 0>``."""
    split: str = ""
    """``train``, ``val`` or ``test``; "" if the file does not say."""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a file, by which importers recognise their format. Compressed files are decompressed."""

    path: Path
    start: bytes
    """The first 64 KiB."""
    shape: Literal["lines", "list", "object", "zip", "other"]
    """JSON Lines, a JSON list, one JSON object, a zip archive, or something else."""
    values: tuple[Any, ...] = ()
    """The first parsed values: of ``lines`` up to 20 lines, of ``list`` up to 5 items, of ``object`` the object."""
    members: tuple[str, ...] = ()
    """Names of the files in a zip archive."""


class Importer(Protocol):
    """One format: a module with these three names.

    It may also have ``questions(path, skipped)``, which yields :class:`Question` records, for formats that have
    questions, and ``STRICT = True``: every ``.jsonl`` file of a folder must have the format, where others are left out.
    """

    NAME: str
    """The value of ``prepare --format``."""

    def recognises(self, head: Head) -> bool:
        """Whether the file has this format. False for everything unknown; never raises."""

    def read(self, path: Path, skipped: Skipped) -> Iterator[Conversation]:
        """Yield the conversations of one file one by one.

        Raises DataError with file, line or record, field and a hint if the file is damaged.
        """
