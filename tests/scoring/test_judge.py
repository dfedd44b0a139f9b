"""Verdicts: only 0, 0.5 and 1 are scores. Anything else is an error and never becomes 0."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.scoring.judge import parse_verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"explanation": "same", "score": 1}', 1.0),
        ('Sure!\n```json\n{"explanation": "vague", "score": 0.5}\n```', 0.5),
        ("{'explanation': 'no', 'score': '0'}", 0.0),
        ('{"score": 1.0, "explanation": "an unclosed quote}', 1.0),
        ('{"Explanation": "same", "Score": 1}', 1.0),
        ('{"EXPLANATION": "no", "SCORE": 0}', 0.0),
        ('{"explanation": "same", "score": "1"}', 1.0),
        ('{"explanation": "same", "score": "1/1"}', 1.0),
        ('{"explanation": "half of it", "score": 0.5/1}', 0.5),
        ('{"explanation": "same", "score": 1', 1.0),
        ('{"explanation": "same", "score": 1,}', 1.0),
        ("The answer says the same.\n\n**Score:** 1", 1.0),
        ("**Explanation:** no.\n**Score:** 0", 0.0),
        ("Explanation: a part of it.\nScore: 0.5", 0.5),
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
        '{"score": "1/2"}',
        '{"score": 5/10}',
        '{"score": 0.7}',
        '{"score": [1]}',
        '{"score": 1, "explanation": "no", "score": 0',
        '{"explanation": "score: 1"}',
        '{"explanation": "<score>1</score>"}',
        '{"explanation": "one short sentence", "score": 0, 0.5 or 1}',
        "[]",
        "{}",
    ],
)
def test_unreadable_verdicts(reply: str) -> None:
    with pytest.raises(UnreadableReplyError):
        parse_verdict(reply)


# --- in many forms ------------------------------------------------------------------------------------------------

SPELT = {0.0: ["0", "0.0", '"0"', '"0/1"'], 0.5: ["0.5", '"0.5"', '"0.5/1"'], 1.0: ["1", "1.0", '"1"', '"1/1"']}
"""Each score as JSON may have it."""
NO_SCORES = ["2", "10", "-1", "0.7", "0.51", "true", "false", "null", "NaN", '""', '"good"', '"1/2"', "{}"]
"""What is no score though it stands where one should."""

Dress = Callable[[str, str], str]
"""Makes a reply of an explanation and a score, which is already JSON."""


def plain(why: str, score: str) -> str:
    return f'{{"explanation": {json.dumps(why)}, "score": {score}}}'


DRESSES: dict[str, Dress] = {
    "plain": plain,
    "score first": lambda why, score: f'{{"score": {score}, "explanation": {json.dumps(why)}}}',
    "score alone": lambda why, score: f'{{"score": {score}}}',
    "capitals": lambda why, score: f'{{"EXPLANATION": {json.dumps(why)}, "SCORE": {score}}}',
    "title case": lambda why, score: f'{{"Explanation": {json.dumps(why)}, "Score": {score}}}',
    "over lines": lambda why, score: f'{{\n  "explanation": {json.dumps(why)},\n  "score": {score}\n}}\n',
    "fence": lambda why, score: f"```json\n{plain(why, score)}\n```",
    "fence without a name": lambda why, score: f"```\n{plain(why, score)}\n```",
    "prose around": lambda why, score: f"Here is my verdict:\n\n{plain(why, score)}\n\nI hope that this helps!",
    "braces before": lambda why, score: f"Of the {{two}} answers one is true. {plain(why, score)}",
    "form first": lambda why, score: f"In the form {plain('one short sentence', '0, 0.5 or 1')}:\n{plain(why, score)}",
    "another verdict first": lambda why, score: f"{plain('At first.', '0.5')}\nNo, wait.\n{plain(why, score)}",
    "two verdicts first": lambda why, score: f"{plain('', '1')}\n{plain('', '0')}\nFinally:\n{plain(why, score)}",
}
BROKEN: dict[str, Dress] = {
    "missing brace": lambda why, score: plain(why, score)[:-1],
    "missing brace in a fence": lambda why, score: f"```json\n{plain(why, score)[:-1]}\n```",
    "comma at the end": lambda why, score: plain(why, score)[:-1] + ",}",
    "single quotes": lambda why, score: plain(why, score).replace('"', "'"),
    "bold": lambda why, score: f"{why}\n\n**Score:** {score.strip(chr(34))}",
    "bold, with a label": lambda why, score: f"**Explanation:** {why}\n\n**Score: {score.strip(chr(34))}**",
    "a line": lambda why, score: f"Explanation: {why}\nScore: {score.strip(chr(34))}",
}
"""Replies that are no JSON; of these, only plain words are taken for explanations."""

SCORES = st.sampled_from([(score, spelt) for score, ways in SPELT.items() for spelt in ways])
WORDS = st.text("abcdefghij ABC,.", max_size=40).map(str.strip)
QUOTES = st.sampled_from(
    ['the answer says {"score": 0}', 'it ends in "}', "score: 1", '**Score:** 0\n{"score": 1}', "{"]
)
"""Explanations that quote what could be taken for a verdict."""


@pytest.mark.parametrize("dress", DRESSES)
@given(score=SCORES, why=st.text(max_size=40) | QUOTES)
def test_a_verdict_in_sound_json_is_read_whatever_it_explains(dress: str, score: tuple[float, str], why: str) -> None:
    assert parse_verdict(DRESSES[dress](why, score[1])) == score[0]


@pytest.mark.parametrize("dress", BROKEN)
@given(score=SCORES, why=WORDS)
def test_a_verdict_with_errors_is_read(dress: str, score: tuple[float, str], why: str) -> None:
    assert parse_verdict(BROKEN[dress](why, score[1])) == score[0]


@pytest.mark.parametrize("dress", [*DRESSES, *BROKEN])
@given(score=st.sampled_from(NO_SCORES), why=WORDS)
def test_what_is_no_score_is_an_error_in_every_dress(dress: str, score: str, why: str) -> None:
    """Also after a valid verdict, because the last one counts."""
    with pytest.raises(UnreadableReplyError):
        parse_verdict({**DRESSES, **BROKEN}[dress](why, score))


@given(st.text() | st.text("{}[]\"':,/ \nscoreSCORE.015*"))
def test_any_text_is_a_score_or_an_error(reply: str) -> None:
    try:
        score = parse_verdict(reply)
    except UnreadableReplyError:
        return
    assert score in (0.0, 0.5, 1.0)
    assert "score" in reply.lower(), "a number alone is not a verdict"
