"""Cutting traces into spans."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import UsageError
from memskill_cli.types import Session, Trace, Turn

DAY1, DAY2 = "1:56 pm on 8 May, 2023", "2 pm on 9 May, 2023"
TALK = (
    Session("session_1", DAY1, (Turn("Ann", "Hi"), Turn("Bob", "Hello"), Turn("Ann", "A cat!"))),
    Session("session_2", DAY2, (Turn("Bob", "Back again"),)),
)


def trace(*sessions: Session) -> Trace:
    return Trace("conv-1", "locomo", "test", sessions, ())


def texts(mode, *sessions: Session, **options) -> list[str]:
    return [span.text for span in split_spans(trace(*(sessions or TALK)), mode, **options)]


def plain(text: str) -> Session:
    """A session whose whole text is ``text``."""
    return Session("document", "", (Turn("", text),))


def tokens(text: str) -> int:
    split_spans(trace(*TALK), "fixed-length")  # tiktoken keeps what this loads; asked by itself it would download
    return len(tiktoken.get_encoding("cl100k_base").encode_ordinary(text))


def test_turn():
    assert texts("turn") == [
        f"[{DAY1}]\nAnn: Hi", f"[{DAY1}]\nBob: Hello", f"[{DAY1}]\nAnn: A cat!", f"[{DAY2}]\nBob: Back again"
    ]  # fmt: skip


def test_turn_pair_leaves_an_odd_turn_alone_and_never_pairs_over_sessions():
    assert texts("turn-pair") == [
        f"[{DAY1}]\nAnn: Hi\nBob: Hello", f"[{DAY1}]\nAnn: A cat!", f"[{DAY2}]\nBob: Back again"
    ]  # fmt: skip


def test_full_session():
    assert texts("full-session") == [f"[{DAY1}]\nAnn: Hi\nBob: Hello\nAnn: A cat!", f"[{DAY2}]\nBob: Back again"]


def test_spans_are_numbered_in_order_and_may_be_limited():
    spans = split_spans(trace(*TALK), "turn", max_spans=2)
    assert [(span.trace_id, span.index) for span in spans] == [("conv-1", 0), ("conv-1", 1)]
    assert spans == split_spans(trace(*TALK), "turn")[:2]


def test_a_text_that_fits_is_one_span():
    text = "Ann: " + " ".join(["cat"] * 60)
    assert texts("fixed-length", plain(text), chunk_size=tokens(text), chunk_overlap=10) == [text]


def test_windows_advance_by_size_less_overlap_and_stop_when_the_last_token_is_covered():
    text = "".join(f" {i % 10}" for i in range(50))
    size = tokens(text)
    assert size == 100  # a blank and a digit each
    cut_at = [(0, 40), (30, 70), (60, 100)]
    assert texts("fixed-length", plain(text), chunk_size=40, chunk_overlap=10) == [text[a:b] for a, b in cut_at]
    longer = text + " 7"
    assert len(texts("fixed-length", plain(longer), chunk_size=40, chunk_overlap=10)) == 4


def test_every_window_repeats_its_sessions_date_and_none_reaches_into_the_next_session():
    spans = texts("fixed-length", chunk_size=5, chunk_overlap=1)
    first = [span for span in spans if span.startswith(f"[{DAY1}]\n")]
    assert len(first) > 1
    assert spans == [*first, f"[{DAY2}]\nBob: Back again"]


@pytest.mark.parametrize(("size", "overlap"), [(64, 64), (64, 100), (0, 0), (10, -1)])
def test_a_window_that_would_not_advance_is_refused(size, overlap):
    with pytest.raises(UsageError, match="chunk overlap"):
        split_spans(trace(*TALK), "fixed-length", chunk_size=size, chunk_overlap=overlap)


WILD = st.text(st.characters(codec="utf-8") | st.sampled_from("😀👩‍🚀日本語ẞ é\n"), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(text=WILD, size=st.integers(1, 12))
def test_without_overlap_the_windows_join_to_the_text(text, size):
    assert "".join(texts("fixed-length", plain(text), chunk_size=size, chunk_overlap=0)) == text


@settings(max_examples=200, deadline=None)
@given(
    characters=st.lists(st.characters(codec="utf-8") | st.sampled_from("😀🚀日本語ẞ é\n"), min_size=1, unique=True),
    size=st.integers(2, 12),
    data=st.data(),
)
def test_with_overlap_the_windows_cover_the_text_in_order(characters, size, data):
    text = "".join(characters)  # no character twice, so that a window has one place only
    overlap = data.draw(st.integers(1, size - 1))
    covered = 0
    for window in texts("fixed-length", plain(text), chunk_size=size, chunk_overlap=overlap):
        start = text.index(window)
        assert start <= covered
        covered = start + len(window)
    assert covered == len(text)


def test_an_emoji_is_never_split():
    text = "🧶" * 30  # three tokens each
    windows = texts("fixed-length", plain(text), chunk_size=4, chunk_overlap=1)
    assert all(set(window) == {"🧶"} for window in windows)
    assert len(windows) > 10


def test_special_tokens_in_a_text_are_just_text():
    assert texts("fixed-length", plain("<|endoftext|> it said")) == ["<|endoftext|> it said"]


def test_paragraph_splits_where_a_document_starts():
    text = "Document 1:\nRome\nSee Document 2: below.\n\nDocument 2:\nParis\nA city."
    assert texts("paragraph", plain(text)) == [
        "Document 1:\nRome\nSee Document 2: below.", "Document 2:\nParis\nA city."
    ]  # fmt: skip


def refs(mode, *sessions: Session, **options) -> list[list[str]]:
    spans = split_spans(trace(*(sessions or TALK)), mode, **options)
    return [[source.ref for source in span.sources] for span in spans]


def test_a_span_names_the_turns_that_it_has_a_part_of():
    assert refs("turn") == [["session_1:0"], ["session_1:1"], ["session_1:2"], ["session_2:0"]]
    assert refs("turn-pair") == [["session_1:0", "session_1:1"], ["session_1:2"], ["session_2:0"]]
    assert refs("full-session") == [["session_1:0", "session_1:1", "session_1:2"], ["session_2:0"]]


def test_a_window_names_the_turns_that_it_cuts():
    text = "Ann: Hi\nBob: Hello\nAnn: A cat!"
    spans = split_spans(trace(TALK[0]), "fixed-length", chunk_size=5, chunk_overlap=0)
    for span in spans:
        shown = span.text.partition("]\n")[2]
        start = text.index(shown)
        inside = [
            f"session_1:{i}"
            for i, line in enumerate(text.split("\n"))
            if text.index(line) < start + len(shown) and text.index(line) + len(line) > start
        ]
        assert [source.ref for source in span.sources] == inside
    assert len(spans) > 2


def test_a_source_has_date_speaker_and_text_of_its_turn():
    source = split_spans(trace(*TALK), "turn")[2].sources[0]
    assert (source.ref, source.date, source.speaker, source.text) == ("session_1:2", DAY1, "Ann", "A cat!")
    assert source.session == "session_1"
    assert split_spans(trace(*TALK), "turn")[2].date == DAY1


@given(st.text(st.characters(codec="utf-8"), max_size=6000).filter(str.strip))
@settings(max_examples=60, deadline=None)
def test_a_long_turn_is_kept_in_parts_that_join_to_it(text):
    (span,) = split_spans(trace(Session("s", "", (Turn("Ann", text),))), "full-session")
    joined = "".join(source.text for source in span.sources)
    assert "".join(joined.split()) == "".join(text.split())
    assert all(len(source.text) <= 1200 for source in span.sources)
    if len(span.sources) > 1:
        assert [source.ref for source in span.sources] == [f"s:0.{i}" for i in range(len(span.sources))]


def test_documents_of_one_turn_are_sources_of_their_own():
    (span,) = split_spans(trace(plain("Document 1:\nA cat\n\nDocument 2:\nA dog")), "full-session")
    assert [source.text for source in span.sources] == ["Document 1:\nA cat", "Document 2:\nA dog"]


def test_sessions_with_one_label_have_refs_of_their_own():
    assert refs("full-session", TALK[1], TALK[1]) == [["session_2:0"], ["session_2#2:0"]]
    labels = [Session(label, "", (Turn("Ann", "Hi"),)) for label in ("a", "a", "a#2", "a#2", "a")]
    found = [name for span in refs("full-session", *labels) for name in span]
    assert found == ["a:0", "a#2:0", "a#2#2:0", "a#2#3:0", "a#3:0"]


def test_a_turn_of_blanks_is_no_source():
    assert refs("full-session", Session("s", "", (Turn("Ann", " "), Turn("Bob", "Hi")))) == [["s:1"]]


def test_paragraph_is_for_document_sets_only():
    with pytest.raises(UsageError, match="the text has none"):
        split_spans(trace(*TALK), "paragraph")


def test_the_tokenizer_is_found_without_network_or_litellm_and_leaves_the_environment_alone():
    code = """
import os, sys
from memskill_cli.datasets.spans import split_spans
from memskill_cli.types import Session, Trace, Turn
split_spans(Trace("t", "d", "test", (Session("s", "", (Turn("Ann", "Hi"),)),), ()), "fixed-length")
assert "litellm" not in sys.modules
print(os.environ["TIKTOKEN_CACHE_DIR"])
"""
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": "/elsewhere", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/elsewhere"
