"""Formats of conversations that ``prepare --dataset NAME --source …`` reads. One module a format.

To add one, write a module with the names of :class:`memskill_cli.datasets.conversations.Importer` and add it here.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memskill_cli.datasets.conversations import Head, Importer
from memskill_cli.datasets.importers import (
    chatgpt,
    claude,
    claude_code,
    codex,
    langfuse,
    langsmith,
    locomo,
    messages,
    sharegpt,
)
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError, UsageError

IMPORTERS: tuple[Importer, ...] = (messages, locomo, sharegpt, chatgpt, claude, claude_code, codex, langsmith, langfuse)
"""In the order in which they are asked whether they recognise a file."""
AUTO = "auto"
LINES = (".jsonl", ".ndjson")
"""Files of a folder that a strict importer reads, whatever they have."""


class Detected(NamedTuple):
    """The importer for a source, its files, and the files of a folder that are left out."""

    importer: Importer
    reason: str
    """Why it was chosen, for people."""
    files: list[Path]
    left_out: list[Path]


def names() -> list[str]:
    """The values of ``--format``."""
    return [AUTO, *(importer.NAME for importer in IMPORTERS)]


def detect(files: Sequence[Path], wanted: str = AUTO) -> Detected:
    """Choose the importer for ``files`` (at least one): the one named ``wanted``, or by the files' content.

    Raises UsageError for an unknown format, DataError if the content has no known format.
    """
    importer = _named(wanted)
    reason = f"format {wanted}, as asked for"
    if importer is None:
        importer, reason = _recognised(files)
    if len(files) == 1:
        return Detected(importer, reason, list(files), [])
    full = [file for file in files if file.stat().st_size]
    strict = LINES if getattr(importer, "STRICT", False) else ()
    kept = [file for file in full if any(end in file.name for end in strict) or _recognises(importer, file)]
    if not kept:
        raise _unknown(files[0], [importer.NAME])
    return Detected(importer, reason, kept, [file for file in files if file not in set(kept)])


def _recognises(importer: Importer, file: Path) -> bool:
    """Whether a file of a folder has the format. A damaged one has not; it is named as left out."""
    try:
        return importer.recognises(head_of(file))
    except DataError:
        return False


def _named(wanted: str) -> Importer | None:
    """The importer with a name; None for ``auto``."""
    found = next((importer for importer in IMPORTERS if wanted == importer.NAME), None)
    if found is None and wanted != AUTO:
        near = difflib.get_close_matches(wanted, names(), n=1)
        raise UsageError(
            f"no format is called {wanted}; there are {', '.join(names())}",
            hint=f"did you mean {near[0]}?" if near else "leave --format out: the format is found by content",
        )
    return found


def _recognised(files: Sequence[Path]) -> tuple[Importer, str]:
    problem: DataError | None = None
    for file in [file for file in files if file.stat().st_size] or files:
        try:
            head = head_of(file)
        except DataError as error:  # another file of the folder may have a format
            problem = problem or error
            continue
        for importer in IMPORTERS:
            if importer.recognises(head):
                return importer, f"format {importer.NAME}, recognised by the content of {file.name}"
        problem = problem or _unknown(file, names()[1:], head)
    assert problem is not None
    raise problem


def _unknown(path: Path, formats: Sequence[str], head: Head | None = None) -> DataError:
    found = ""
    if head and head.values and isinstance(head.values[0], dict):
        keys = ", ".join(list(head.values[0])[:6])
        found = f"; its first record has {keys[:120] or 'no keys'}"
    return DataError(
        f"{path.name}: not in a known format ({', '.join(formats)}){found}",
        hint=f"name it with --format, or see docs/own-data.md; look at it: head -c 300 {shlex.quote(str(path))}",
    )
