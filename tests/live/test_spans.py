"""Spans of a conversation that goes on are those of the whole conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.datasets.spans import split_spans, text_of
from memskill_cli.live.spans import LONGEST, SpanRule, cut
from memskill_cli.types import Session, SpanMode, Trace, Turn

TURNS = [Turn("Ivo", f"This is number {number}, said about a harbour 🚢.") for number in range(9)]
MODES: tuple[SpanMode, ...] = ("turn", "turn-pair", "full-session", "fixed-length")


def whole(turns: list[Turn], rule: SpanRule) -> list[str]:
    trace = Trace("t", "locomo", "train", (Session("s", "", tuple(turns)),), ())
    spans = split_spans(trace, rule.mode, chunk_size=rule.chunk_size, chunk_overlap=rule.chunk_overlap)
    return [span.text for span in spans]


def said(turns: list[Turn], rule: SpanRule, ends: list[int]) -> list[tuple[int, int]]:
    """Where the spans begin and end if ``turns`` come one after the other; ``ends``: a flush after these numbers."""
    read, resume, first = list[tuple[int, int]](), 0, 0
    starts = [len(text_of(turns[:number])) + bool(number) for number in range(len(turns) + 1)]
    for number in range(1, len(turns) + 1):
        while first < number and starts[first + 1] <= resume:
            first += 1
        flush = number in ends or number == len(turns)
        base = starts[first]
        for piece in cut(turns[first:number], rule, max(0, resume - base), flush):
            read.append((base + piece.start, base + piece.end))
            resume = base + piece.resume
    return read


@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_that_goes_on_is_cut_like_a_whole_one(mode: SpanMode) -> None:
    rule = SpanRule(mode, 40, 10)
    text = text_of(TURNS)
    assert [text[start:end] for start, end in said(TURNS, rule, [])] == whole(TURNS, rule)


def test_a_span_waits_until_it_is_complete() -> None:
    assert cut(TURNS[:1], SpanRule("turn-pair", 0, 0), 0, ended=False) == []
    assert len(cut(TURNS[:3], SpanRule("turn-pair", 0, 0), 0, ended=False)) == 1
    assert cut(TURNS, SpanRule("full-session", 0, 0), 0, ended=False) == []
    assert cut(TURNS[:1], SpanRule("fixed-length", 64, 8), 0, ended=False) == []
    assert len(cut(TURNS[:1], SpanRule("fixed-length", 64, 8), 0, ended=True)) == 1


@pytest.mark.parametrize("mode", ["turn", "turn-pair", "full-session", "paragraph"])
def test_what_is_long_is_read_in_several_spans(mode: SpanMode) -> None:
    turns = [Turn("Ivo", "word " * 20_000), Turn("Mara", "Yes.")]
    text, pieces = text_of(turns), cut(turns, SpanRule(mode, 0, 0), 0, ended=True)
    assert max(piece.end - piece.start for piece in pieces) <= LONGEST
    assert "".join(text[piece.start : piece.end] for piece in pieces).replace("\n", "") == text.replace("\n", "")


def test_a_session_that_never_ends_does_not_wait_for_ever() -> None:
    turns = [Turn("Ivo", "x" * 500)] * 40
    (piece,) = cut(turns, SpanRule("full-session", 0, 0), 0, ended=False)
    assert LONGEST // 2 < piece.end <= LONGEST
    assert cut(turns, SpanRule("full-session", 0, 0), piece.resume, ended=False) == []


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1, max_size=8),
    st.sampled_from(MODES),
    st.integers(2, 30).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))),
    st.lists(st.integers(1, 8), max_size=3),
)
def test_every_character_is_read_in_order(
    texts: list[str], mode: SpanMode, sizes: tuple[int, int], ends: list[int]
) -> None:
    turns = [Turn("I", text) for text in texts]
    rule = SpanRule(mode, *sizes)
    position = 0
    for start, end in said(turns, rule, ends):
        assert start <= position + 1  # a line break between two turns is in no span
        assert position <= end
        position = end
    assert position == len(text_of(turns))
