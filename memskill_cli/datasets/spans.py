"""How a trace is cut into spans, the pieces that are read one after the other (section 2 of the method).

Every span starts with the date line of its session, if there is one; the text of a session is its turns, one
``Speaker: text`` a line.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Session, Span, SpanMode, Trace, Turn

if TYPE_CHECKING:
    import tiktoken

_DOCUMENT = re.compile(r"^(?=Document \d+:)", re.MULTILINE)


def split_spans(
    trace: Trace, mode: SpanMode, *, chunk_size: int = 512, chunk_overlap: int = 64, max_spans: int = 0
) -> list[Span]:
    """The spans of ``trace`` in reading order; the first ``max_spans`` of them if that is above 0.

    ``chunk_size`` and ``chunk_overlap`` are cl100k_base tokens and matter for ``fixed-length`` only. Raises UsageError
    if the window would not advance, or if ``paragraph`` is asked of a text that is no document set.
    """
    if mode == "fixed-length" and not 0 <= chunk_overlap < chunk_size:
        raise UsageError(
            f"chunk overlap {chunk_overlap} must be at least 0 and smaller than chunk size {chunk_size}",
            hint="a window advances by size - overlap",
        )
    texts = [
        f"[{session.date}]\n{piece}" if session.date else piece
        for session in trace.sessions
        for piece in _pieces(session, mode, chunk_size, chunk_overlap)
    ]
    return [Span(trace.trace_id, i, text) for i, text in enumerate(texts[: max_spans or None])]


def count_tokens(text: str) -> int:
    """The length of ``text`` in cl100k_base tokens."""
    return len(_cl100k().encode_ordinary(text))


def _pieces(session: Session, mode: SpanMode, size: int, overlap: int) -> Iterator[str]:
    turns = session.turns
    if mode == "turn":
        yield from (_text((turn,)) for turn in turns)
    elif mode == "turn-pair":
        yield from (_text(turns[i : i + 2]) for i in range(0, len(turns), 2))
    elif mode == "full-session":
        yield _text(turns)
    elif mode == "fixed-length":
        yield from _windows(_text(turns), size, overlap)
    elif mode == "paragraph":
        yield from _documents(_text(turns))
    else:
        raise UsageError(f"no span mode is called {mode}")


def _text(turns: tuple[Turn, ...]) -> str:
    return "\n".join(f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns)


def _windows(text: str, size: int, overlap: int) -> Iterator[str]:
    """Windows of ``size`` tokens, each sharing ``overlap`` with the one before.

    A token may end within a character; every cut is moved back to where that character starts, so that each character
    is whole in some window, and with no overlap the windows join to ``text``.
    """
    data = text.encode()
    encoding = _cl100k()
    lengths = (len(encoding.decode_single_token_bytes(token)) for token in encoding.encode_ordinary(text))
    cuts = [_char_start(data, offset) for offset in accumulate(lengths, initial=0)]
    last = len(cuts) - 1
    for start in range(0, last, size - overlap):
        end = min(start + size, last)
        if window := data[cuts[start] : cuts[end]]:  # a window can lie within one character
            yield window.decode()
        if end == last:
            return


def _char_start(data: bytes, offset: int) -> int:
    while offset < len(data) and data[offset] & 0xC0 == 0x80:  # UTF-8 continuation byte
        offset -= 1
    return offset


def _documents(text: str) -> Iterator[str]:
    parts = [part.strip() for part in _DOCUMENT.split(text)]
    if not any(_DOCUMENT.match(part) for part in parts):
        raise UsageError(
            "paragraph spans are for document sets (Document 1: …), and this is none",
            hint="use --span-mode fixed-length or full-session",
        )
    yield from (part for part in parts if part)


@functools.cache
def _cl100k() -> tiktoken.Encoding:
    """The cl100k_base tokenizer, from the file that litellm carries, so that none is downloaded."""
    import tiktoken

    litellm = importlib.util.find_spec("litellm")  # finds the folder without importing it
    assert litellm is not None
    assert litellm.submodule_search_locations
    folder = Path(litellm.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        return tiktoken.get_encoding("cl100k_base")
    except OSError as error:
        raise DataError(
            f"the cl100k_base tokenizer is neither in {folder} nor to be downloaded: {error}",
            hint="reinstall litellm, or use another --span-mode than fixed-length",
        ) from error
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
