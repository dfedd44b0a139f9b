"""Verdicts: only 0, 0.5 and 1 are scores; anything else is an error, never a 0."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.evaluation.judge import SCORES, parse_verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"explanation": "same", "score": 1}', 1.0),
        ('Sure!\n```json\n{"explanation": "vague", "score": 0.5}\n```', 0.5),
        ("{'explanation': 'no', 'score': '0'}", 0.0),
        ('{"score": 1.0, "explanation": "an unclosed quote}', 1.0),
    ],
)
def test_readable_verdicts(reply: str, score: float) -> None:
    assert parse_verdict(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes",
        "1",
        '{"score": 10}',
        '{"score": NaN}',
        '{"score": -1}',
        '{"score": true}',
        '{"score": null}',
        "[]",
        "{}",
    ],
)
def test_unreadable_verdicts(reply: str) -> None:
    with pytest.raises(UnreadableReplyError):
        parse_verdict(reply)


@given(st.text())
def test_any_text_is_a_score_or_an_error(reply: str) -> None:
    with contextlib.suppress(UnreadableReplyError):
        assert parse_verdict(reply) in SCORES
