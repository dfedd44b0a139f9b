"""Metrics of two texts: token F1, exact match, and the normalisation that both use (section 5 of the method)."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import Any

_DROPPED_WORDS = frozenset({"a", "an", "the", "and"})


def normalise(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation and without a, an, the, and."""
    bare = "".join(c for c in text.lower() if not _is_punctuation(c))
    return [word for word in bare.split() if word not in _DROPPED_WORDS]


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    """Whether ``char`` is ASCII punctuation or an ASCII symbol, other punctuation, or a zero-width character."""
    return char in string.punctuation or unicodedata.category(char)[0] == "P" or unicodedata.category(char) == "Cf"


def token_f1(prediction: str, truth: str) -> float:
    """F1 of the overlap of the two multisets of Porter-stemmed words; 0 if there is none."""
    predicted, true = (Counter(_stem(word) for word in normalise(text)) for text in (prediction, truth))
    common = (predicted & true).total()
    return 2 * common / (predicted.total() + true.total()) if common else 0.0


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


@cache
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("porter")


def exact_match(prediction: str, truth: str) -> bool:
    """Whether both have the same words in the same order after :func:`normalise`."""
    return normalise(prediction) == normalise(truth)
