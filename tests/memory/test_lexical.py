"""BM25 against bm25s, whatever was added, replaced and removed before."""

from __future__ import annotations

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.errors import UsageError
from memskill_cli.memory.lexical import K1, Analyzer, B, LexicalIndex

WORDS = ("harbour", "cat", "porto", "paint", "sister")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8)
CHANGES = st.lists(st.tuples(st.integers(0, 6), st.one_of(st.none(), TEXTS)), max_size=25)


def reference(texts: dict[int, list[str]], query: list[str], rows: int) -> np.ndarray:
    """The scores of bm25s's "lucene" variant, whose idf is ours, times k1 + 1, which that variant leaves out."""
    scores = np.zeros(rows)
    kept = {row: text for row, text in texts.items() if text}
    if not kept or not any(word in text for word in query for text in kept.values()):
        return scores
    model = bm25s.BM25(k1=K1, b=B, method="lucene")
    model.index(list(texts.values()), show_progress=False)
    known = [word for word in query if word in model.vocab_dict]
    scores[list(texts)] = model.get_scores(known) * (K1 + 1)
    return scores


@given(CHANGES, st.sets(st.sampled_from(WORDS), min_size=1))
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_an_index_made_at_once(changes, asked):
    index, texts = LexicalIndex(), {}
    for row, text in changes:
        if text is None:
            index.remove(row)
            texts.pop(row, None)
        else:
            index.put(row, {word: float(text.count(word)) for word in text})
            texts[row] = text
        index.scores(asked, 7)  # fills the cache of postings, which the next change must drop
    np.testing.assert_allclose(index.scores(asked, 7), reference(texts, sorted(asked), 7), rtol=1e-5, atol=1e-6)


def test_a_term_that_is_asked_for_twice_counts_once():
    index = LexicalIndex()
    index.put(0, {"cat": 1.0})
    assert index.scores(["cat", "cat"], 1) == index.scores(["cat"], 1)


def test_terms_are_stems_without_stop_words():
    assert Analyzer().terms("What are Caroline's PAINTINGS of the harbour?") == ["carolin", "paint", "harbour"]


def test_a_quote_is_no_possessive():
    assert Analyzer("none").terms("the 'sunset' of Bento's and Mara’s") == [
        "the",
        "sunset",
        "of",
        "bento",
        "and",
        "mara",
    ]


def test_another_language_has_its_own_stems_and_stop_words():
    assert Analyzer("german").terms("die Häuser und das Haus") == ["haus", "haus"]


def test_without_a_language_words_stay_as_they_are():
    assert Analyzer("none").terms("The Paintings") == ["the", "paintings"]


def test_text_without_spaces_becomes_pairs_of_characters():
    assert Analyzer().terms("我住在利兹") == ["我住", "住在", "在利", "利兹"]


def test_an_unknown_language_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"memory\.language klingon") as caught:
        Analyzer("klingon")
    assert "german" in caught.value.hint
