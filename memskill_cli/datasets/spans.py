"""Cut a trace into spans, which are read one after the other (section 2 of docs/method.md).

A span starts with the date line of its session, if there is one. The text of a session has one line
``Speaker: text`` for each turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, count

from memskill_cli.errors import UsageError
from memskill_cli.types import Session, Source, Span, SpanMode, Trace, Turn
from memskill_cli.utils.tokens import cl100k

MAX_SOURCE = 1200
"""Characters of a source, about 300 tokens; a longer turn is kept as several."""
_DOCUMENT = re.compile(r"^(?=Document \d+:)", re.MULTILINE)


def split_spans(
    trace: Trace, mode: SpanMode, *, chunk_size: int = 512, chunk_overlap: int = 64, max_spans: int = 0
) -> list[Span]:
    """The spans of ``trace`` in reading order; at most ``max_spans`` of them (0: all).

    ``chunk_size`` and ``chunk_overlap`` are numbers of cl100k_base tokens, used only for ``fixed-length``. Raises
    UsageError if the overlap is not smaller than the size, or for ``paragraph`` if the text has no documents.
    """
    if mode == "fixed-length" and not 0 <= chunk_overlap < chunk_size:
        raise UsageError(
            f"chunk overlap {chunk_overlap} must be at least 0 and smaller than chunk size {chunk_size}",
            hint="a window advances by size - overlap; set another chunk_overlap",
        )
    spans: list[Span] = []
    labels = unique_labels([session.label for session in trace.sessions])
    for session, label in zip(trace.sessions, labels, strict=True):
        said = list(_sources(session, label))
        starts, ends = [first for first, _, _ in said], [last for _, last, _ in said]
        text = text_of(session.turns)
        for start, end in _ranges(session, mode, chunk_size, chunk_overlap):
            shown = f"[{session.date}]\n{text[start:end]}" if session.date else text[start:end]
            overlapping = said[bisect_right(ends, start) : bisect_left(starts, end)]
            sources = tuple(source for _, _, source in overlapping)
            spans.append(Span(trace.trace_id, len(spans), shown, sources, session.date))
            if len(spans) == max_spans:
                return spans
    return spans


def _ranges(session: Session, mode: SpanMode, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Where the spans of a session begin and end in its text, in characters."""
    text = text_of(session.turns)
    if mode == "turn":
        yield from _turn_ranges(session.turns)
    elif mode == "turn-pair":
        turns = list(_turn_ranges(session.turns))
        yield from ((turns[i][0], turns[min(i + 1, len(turns) - 1)][1]) for i in range(0, len(turns), 2))
    elif mode == "full-session":
        yield 0, len(text)
    elif mode == "fixed-length":
        yield from windows(text, size, overlap)
    elif mode == "paragraph":
        yield from _documents(text)
    else:
        raise UsageError(f"no span mode is called {mode}")


def _turn_ranges(turns: tuple[Turn, ...]) -> Iterator[tuple[int, int]]:
    start = 0
    for turn in turns:
        end = start + len(text_of((turn,)))
        yield start, end
        start = end + 1


def _sources(session: Session, label: str) -> Iterator[tuple[int, int, Source]]:
    """The sources of a session, each with where it begins and ends in the session's text."""
    for i, (turn, (start, end)) in enumerate(zip(session.turns, _turn_ranges(session.turns), strict=True)):
        parts = list(source_parts(turn.text))
        first = end - len(turn.text)  # behind the speaker
        for number, (left, right) in enumerate(parts):
            ref = f"{label}:{i}" if len(parts) == 1 else f"{label}:{i}.{number}"
            source = Source(ref, session.date, turn.speaker, turn.text[left:right].strip())
            if source.text:
                yield start if left == 0 else first + left, first + right, source


def source_parts(text: str) -> Iterator[tuple[int, int]]:
    """A text in parts of at most :data:`MAX_SOURCE` characters, cut where a document, paragraph, line, sentence or word
    ends: (start, end)."""
    for first, last in _documents(text) if _DOCUMENT.search(text) else [(0, len(text))]:
        start = first
        while last - start > MAX_SOURCE:
            window = text[start : start + MAX_SOURCE]
            end = next((cut for sep in ("\n\n", "\n", ". ", " ") if (cut := window.rfind(sep) + 1) > 0), MAX_SOURCE)
            yield start, start + end
            start += end
        yield start, last


def unique_labels(labels: list[str]) -> list[str]:
    """The labels; one that occurs again gets the first number behind it that makes it unique."""
    found: dict[str, None] = {}
    for label in labels:
        again = (f"{label}#{number}" for number in count(2))
        found[label if label not in found else next(name for name in again if name not in found)] = None
    return list(found)


def text_of(turns: Iterable[Turn]) -> str:
    """Turns as a span shows them: one line ``Speaker: text`` for each."""
    return "\n".join(f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns)


def windows(text: str, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows (start, end) of ``size`` tokens. Each shares ``overlap`` tokens with the previous one.

    A token may end inside a character. Such a cut is moved back to the start of the character, so every character is
    complete in some window, and windows without overlap can be joined to ``text``.
    """
    data = text.encode()
    encoding = cl100k()
    lengths = (len(encoding.decode_single_token_bytes(token)) for token in encoding.encode_ordinary(text))
    cuts = [_char_start(data, offset) for offset in accumulate(lengths, initial=0)]
    last = len(cuts) - 1
    for start in range(0, last, size - overlap):
        end = min(start + size, last)
        if cuts[end] > cuts[start]:  # a window can be smaller than one character
            before = len(data[: cuts[start]].decode())
            yield before, before + len(data[cuts[start] : cuts[end]].decode())
        if end == last:
            return


def _char_start(data: bytes, offset: int) -> int:
    while offset < len(data) and data[offset] & 0xC0 == 0x80:  # UTF-8 continuation byte
        offset -= 1
    return offset


def _documents(text: str) -> Iterator[tuple[int, int]]:
    """Where each document of a set begins and ends, without the blanks around it."""
    if not _DOCUMENT.search(text):
        raise UsageError(
            "span mode paragraph needs documents (Document 1: …), and the text has none",
            hint="use --span-mode fixed-length or full-session",
        )
    start = 0
    for part in _DOCUMENT.split(text):
        if bare := part.strip():
            first = start + part.index(bare)
            yield first, first + len(bare)
        start += len(part)
