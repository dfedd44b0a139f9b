"""Cuts buffered turns into spans of the kind that the skills were trained on, as :mod:`memskill_cli.datasets.spans`.

A trace is complete when it is cut; a conversation goes on. So a span is read when it is known where it ends, and the
rest waits. Where nothing else ends a span, it ends after :data:`LONGEST` characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from memskill_cli.datasets.spans import text_of, windows
from memskill_cli.types import SpanMode, Turn

LONGEST = 16_000
"""Characters of a span, about 4,000 tokens; a longer turn or session is read in several spans."""


@dataclass(frozen=True, slots=True)
class SpanRule:
    """How turns become spans. Sizes are cl100k_base tokens, for ``fixed-length`` only.

    ``paragraph`` is for sets of documents. Here a message is a document, so it is the same as ``turn``.
    """

    mode: SpanMode
    chunk_size: int
    chunk_overlap: int


class Piece(NamedTuple):
    """A span in the text of a session, from ``start`` to ``end``. The next one begins at ``resume``."""

    start: int
    end: int
    resume: int


def cut(turns: Sequence[Turn], rule: SpanRule, offset: int, ended: bool) -> list[Piece]:
    """The complete spans of waiting turns, of which the first ``offset`` characters were read.

    ``ended``: no more turns will follow, so what is left is a span too.
    """
    text = text_of(turns)
    if rule.mode == "fixed-length":
        return _cut_windows(text, rule, offset, ended)
    pieces, start = [], offset
    for end in _ends(turns, rule.mode, ended):
        if end > start:
            pieces += _bounded(text, start, end)
            start = end + 1
    if len(text) - start > LONGEST:
        pieces += _bounded(text, start, len(text))[:-1]
    return pieces


def _cut_windows(text: str, rule: SpanRule, offset: int, ended: bool) -> list[Piece]:
    found = [(offset + a, offset + b) for a, b in windows(text[offset:], rule.chunk_size, rule.chunk_overlap)]
    resumes = [start for start, _ in found[1:]] + [len(text)]
    pieces = [Piece(start, end, resume) for (start, end), resume in zip(found, resumes, strict=False)]
    # The end of the last one is not known: its last token may become longer with the next turn.
    return pieces if ended else pieces[:-1]


def _ends(turns: Sequence[Turn], mode: SpanMode, ended: bool) -> Iterator[int]:
    """Where spans end in the text of the turns."""
    ends = [end - 1 for end in accumulate(len(text_of((turn,))) + 1 for turn in turns)]
    if mode in ("turn", "paragraph"):
        yield from ends
    elif mode == "turn-pair":
        yield from ends[1::2]
    if ended and ends:
        yield ends[-1]


def _bounded(text: str, start: int, end: int) -> list[Piece]:
    """A range in pieces of at most :data:`LONGEST` characters, cut where a line, a sentence or a word ends."""
    pieces = []
    while end - start > LONGEST:
        window = text[start : start + LONGEST]
        size = next((at for sep in ("\n", ". ", " ") if (at := window.rfind(sep) + 1) > LONGEST // 2), LONGEST)
        pieces.append(Piece(start, start + size, start + size))
        start += size
    return [*pieces, Piece(start, end, end + 1)]
