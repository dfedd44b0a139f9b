"""Token F1, exact match, confidence intervals, and which queries of a trace are scored (section 5 of the method)."""

from __future__ import annotations

import hashlib
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np

from memskill_cli.types import Query

MULTI_HOP = "multi-hop"
OPEN_DOMAIN = "open-domain"
"""Categories of LoCoMo that have a rule of their own."""

_DROPPED_WORDS = frozenset({"a", "an", "the", "and"})
_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>(.*)", re.IGNORECASE | re.DOTALL)
_ANSWER_LABEL = re.compile(r"\b(?:answer[*_`]*\s*:|the\s+answer\s+is\b:?)[*_`\s]*(.+)", re.IGNORECASE)


def normalise(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation and without a, an, the, and."""
    bare = "".join(c for c in text.lower() if not _is_punctuation(c))
    return [word for word in bare.split() if word not in _DROPPED_WORDS]


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    """ASCII punctuation and symbols, other scripts' punctuation, and characters without any width."""
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


def locomo_f1(prediction: str, truth: str, category: str) -> float:
    """Token F1 by LoCoMo's rules.

    Multi-hop: both are lists with commas; each true part takes the best of the predicted parts, and these are
    averaged. Open-domain: see :func:`true_answers`.
    """
    if category == MULTI_HOP:
        predicted, true = _parts(prediction), _parts(truth)
        if not predicted or not true:
            return 0.0
        return math.fsum(max(token_f1(part, wanted) for part in predicted) for wanted in true) / len(true)
    return token_f1(prediction, _without_reason(truth, category))


def true_answers(dataset: str, query: Query) -> tuple[str, ...]:
    """The true answers that F1 and the judge compare with, any of which is right.

    Of LoCoMo's open-domain questions it is the truth before its first ";": what follows is the annotator's reason.
    """
    if dataset != "locomo":
        return query.truths
    return tuple(_without_reason(truth, query.category) for truth in query.truths)


def _without_reason(truth: str, category: str) -> str:
    return truth.split(";")[0] if category == OPEN_DOMAIN else truth


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part.strip()]


def scored_text(dataset: str, reply: str) -> str:
    """The part of a reply that F1 and the judge compare: of HotpotQA the extracted answer, else all of it."""
    return extract_answer(reply) if dataset == "hotpotqa" else reply


def extract_answer(reply: str) -> str:
    """What is inside the first <answer></answer>; else the rest of the line after "Answer:" or "The answer is".

    Else the whole reply. Of several tags the first that holds something is taken; one that is never closed, since the
    token limit cut the reply, reaches to its end.
    """
    tagged = _ANSWER_TAG.findall(reply)
    if filled := next((text.strip() for text in tagged if text.strip()), ""):
        return filled
    found = (None if tagged else _OPEN_TAG.search(reply)) or _ANSWER_LABEL.search(reply)
    return "" if tagged and not found else (found[1] if found else reply).strip()


def hotpot_f1(reply: str, truths: Sequence[str]) -> float:
    """Best token F1 of the extracted answer over all true answers (at least one)."""
    answer = extract_answer(reply)
    return max(token_f1(answer, truth) for truth in truths)


def score_f1(dataset: str, query: Query, prediction: str) -> float:
    """F1 of a prediction in [0, 1] by the dataset's own rule; the best over the query's truths (at least one)."""
    if dataset == "hotpotqa":
        return hotpot_f1(prediction, query.truths)
    if dataset == "locomo":
        return max(locomo_f1(prediction, truth, query.category) for truth in query.truths)
    return max(token_f1(prediction, truth) for truth in query.truths)


def bootstrap_ci(values: Sequence[float], *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``; (nan, nan), which JSON shows as null, of none."""
    if not values:
        return math.nan, math.nan
    rng, scores = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [scores[rng.integers(0, scores.size, scores.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sample_queries(queries: Sequence[Query], ratio: float, key: tuple[int | str, ...]) -> list[Query]:
    """A stratified sample of the scored queries, in their order.

    max(#categories, ⌈ratio·n⌉) of n: one a category, the rest in proportion to what each has left, by largest
    remainder (ties: category name). ``key``, e.g. (seed, trace id, outer, inner), decides the draw through SHA-256,
    so it is the same in every process and does not depend on the order of the queries.
    """
    by_category: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        if query.scored:
            by_category[query.category].append(query)
    sizes = {category: len(group) for category, group in sorted(by_category.items())}
    chosen: set[str] = set()
    for category, count in _allocate(sizes, ratio).items():
        drawn = sorted(by_category[category], key=lambda query: _lot(key, query.query_id))[:count]
        chosen.update(query.query_id for query in drawn)
    return [query for query in queries if query.query_id in chosen]


def _allocate(sizes: dict[str, int], ratio: float) -> dict[str, int]:
    """How many of each category: one, and a share of the rest in proportion to its size.

    Shares are whole by largest remainder (ties: category name), and none exceeds what its category has: what it cannot
    take goes to the others in the same order. In exact arithmetic, so that ⌈0.07·100⌉ is 7.
    """
    total = sum(sizes.values())
    rest = max(len(sizes), math.ceil(Fraction(str(ratio)) * total)) - len(sizes)
    counts = dict.fromkeys(sizes, 1)
    shares = {category: divmod(rest * size, total) for category, size in sizes.items()}
    for category, (share, _) in shares.items():
        counts[category] += min(share, sizes[category] - 1)
    by_remainder = sorted(shares, key=lambda name: -shares[name][1])
    left = rest + len(sizes) - sum(counts.values())
    while left:
        for category in by_remainder:
            if left and counts[category] < sizes[category]:
                counts[category] += 1
                left -= 1
    return counts


def _lot(key: tuple[int | str, ...], query_id: str) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, (*key, query_id))).encode(errors="surrogatepass")).digest()
