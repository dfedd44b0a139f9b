"""Metrics of texts worked by hand, and what must hold of any text."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memskill_cli.utils.text_metrics import exact_match, normalise, token_f1


def test_characters_without_any_width_are_no_part_of_a_word():
    assert normalise("soft\u00adware zero\u200bwidth") == ["software", "zerowidth"]


def test_normalisation():
    assert normalise("The 1,000 cats, and a Dog's “bed”!") == ["1000", "cats", "dogs", "bed"]


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        ("running the cats", "a cat runs", 1.0),  # run cat / cat run
        ("the cat sat", "cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # a multiset: one cat in common
        ("7 May 2023", "May 7, 2023", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),
        ("an island", "islands", 1.0),  # words are dropped, not letters
    ],
)
def test_token_f1(prediction, truth, f1):
    assert token_f1(prediction, truth) == pytest.approx(f1)


def test_exact_match_ignores_what_normalisation_drops():
    assert exact_match("The Cat!", "cat")
    assert not exact_match("cats", "cat")


@given(st.text(), st.text())
def test_token_f1_of_anything(a, b):
    assert 0.0 <= token_f1(a, b) <= 1.0
    assert token_f1(a, b) == token_f1(b, a)


@given(st.text())
def test_a_text_is_like_itself(text):
    assume(normalise(text))
    assert token_f1(text, text) == 1.0
    assert exact_match(text, text)
