"""BM25 over texts that are added, replaced and removed one at a time.

Scores are exact at any time: document frequencies and lengths are those of the texts that are present. bm25s, the
library that tests compare with, builds an index once for texts that do not change; a memory changes with every span.
Its stop words are used here, and Snowball's stemmers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from memskill_cli.errors import UsageError

Ranking = Literal["dense", "lexical", "hybrid"]
"""By cosine similarity of embeddings, by BM25, or by both."""
RANKINGS: tuple[Ranking, ...] = ("dense", "lexical", "hybrid")
K1, B = 1.2, 0.75
"""Saturation of term frequencies, and normalisation by length: the usual values (Robertson and Zaragoza, 2009)."""
Scores = npt.NDArray[np.float64]
_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Japanese and Chinese, written without spaces
_MIN_CAPACITY = 64


class Analyzer:
    """Texts to terms: lower case, without stop words, stemmed. ``language`` is one of Snowball's, or ``none``.

    Text in Chinese or Japanese characters becomes pairs of adjacent characters. UsageError if the language is unknown.
    """

    def __init__(self, language: str = "english") -> None:
        self._stem = _stemmer(language)
        self._stop_words = _stop_words(language)

    def terms(self, text: str) -> list[str]:
        words = (word for word in _WORD.findall(_POSSESSIVE.sub("", text.lower())) if word not in self._stop_words)
        return [term for word in words for term in (_pairs(word) if _UNSPACED.search(word) else [self._stem(word)])]

    def bag(self, text: str) -> dict[str, float]:
        """The terms of ``text`` with their frequencies."""
        return {term: float(count) for term, count in Counter(self.terms(text)).items()}


@cache
def analyzer(language: str) -> Analyzer:
    """The analyzer of a language, made once."""
    return Analyzer(language)


class LexicalIndex:
    """BM25 over bags of weighted terms in numbered rows."""

    def __init__(self) -> None:
        self._bags: dict[int, Mapping[str, float]] = {}
        self._postings: dict[str, dict[int, float]] = {}
        self._arrays: dict[str, tuple[npt.NDArray[np.intp], Scores]] = {}  # of terms that were asked for
        self._lengths: Scores = np.zeros(0)

    def put(self, row: int, bag: Mapping[str, float]) -> None:
        """Set the content of ``row``, replacing an earlier one."""
        self.remove(row)
        if row >= len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros(max(_MIN_CAPACITY, row + 1))])
        self._bags[row] = bag
        self._lengths[row] = sum(bag.values())
        for term, frequency in bag.items():
            self._postings.setdefault(term, {})[row] = frequency
            self._arrays.pop(term, None)

    def remove(self, row: int) -> None:
        """Remove ``row``, if it is there."""
        for term in self._bags.pop(row, ()):
            del self._postings[term][row]
            self._arrays.pop(term, None)
        if row < len(self._lengths):
            self._lengths[row] = 0.0

    def scores(self, terms: Iterable[str], rows: int) -> Scores:
        """The BM25 score of each of the first ``rows`` rows, (rows,). A term counts once, however often asked."""
        scores = np.zeros(rows)
        count, total = len(self._bags), self._lengths.sum()
        if not total:
            return scores
        for term in sorted(set(terms)):  # a fixed order: sums of floats depend on it
            if self._postings.get(term):
                found, frequencies = self._array(term)
                idf = np.log1p((count - len(found) + 0.5) / (len(found) + 0.5))
                norm = K1 * (1 - B + B * self._lengths[found] * (count / total))
                scores[found] += idf * frequencies * (K1 + 1) / (frequencies + norm)
        return scores

    def _array(self, term: str) -> tuple[npt.NDArray[np.intp], Scores]:
        if term not in self._arrays:
            posting = self._postings[term]
            self._arrays[term] = np.fromiter(posting, np.intp, len(posting)), np.array(list(posting.values()))
        return self._arrays[term]


def _pairs(word: str) -> Collection[str]:
    return [word[i : i + 2] for i in range(len(word) - 1)] or [word]


@cache
def _stemmer(language: str) -> Any:
    """A cached function from a word to its stem."""
    import snowballstemmer

    if language == "none":
        return lambda word: word
    if language not in snowballstemmer.algorithms():
        raise UsageError(
            f"memory.language {language}: no such language",
            hint=f"none, or one of {', '.join(snowballstemmer.algorithms())}",
        )
    return lru_cache(maxsize=65536)(snowballstemmer.stemmer(language).stemWord)


@cache
def _stop_words(language: str) -> frozenset[str]:
    """bm25s's list for the language; empty for a language without one."""
    from bm25s import stopwords

    name = "EN_PLUS" if language in ("english", "porter") else language.upper()
    return frozenset(getattr(stopwords, f"STOPWORDS_{name}", ()))
