"""What the logs of coding agents have in common: lines that are appended, texts that the program adds to prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Skipped
from memskill_cli.datasets.source_files import lines, parsed
from memskill_cli.errors import DataError


def log_lines(path: Path, skipped: Skipped) -> Iterator[tuple[str, Any]]:
    """The values of a log in JSON Lines, each with its place.

    A last line that is cut off, because the program was ended or is still writing, is left out and counted. Raises
    DataError for any other line that is not JSON.
    """
    last = None
    for number, line in lines(path):
        if last:
            yield last[0], parsed(last[1], last[0])
        last = f"{path.name}:{number}", line
    if last is None:
        return
    try:
        value = parsed(last[1], last[0])
    except DataError:
        if last[1].endswith(b"}"):
            raise
        skipped["last lines of logs, cut off"] += 1
        return
    yield last[0], value


def log_name(path: Path) -> str:
    """The name of a log without its endings, which is the id of the session."""
    return path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl")


def without_blocks(text: str, tags: Mapping[str, str]) -> tuple[str, set[str]]:
    """``text`` without its parts ``<tag>…</tag>``, and the values of ``tags`` for those that were found."""
    found = set()
    for tag, kind in tags.items():
        text, cut = _without(text, f"<{tag}>", f"</{tag}>")
        if cut:
            found.add(kind)
    return text.strip() if found else text, found


def _without(text: str, opening: str, closing: str) -> tuple[str, bool]:
    """Not a regular expression, which would take quadratic time for tags that are never closed."""
    kept, position = [], 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start)) >= 0:
        kept.append(text[position:start])
        position = end + len(closing)
    return "".join([*kept, text[position:]]), bool(kept)
