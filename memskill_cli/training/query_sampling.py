"""The queries of a trace that an episode asks: a stratified sample of the scored queries."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from memskill_cli.types import Query


def sample_queries(queries: Sequence[Query], ratio: float, key: tuple[int | str, ...]) -> list[Query]:
    """A stratified sample of the scored queries: ⌈ratio·n⌉ of n, drawn as by :func:`draw_queries`."""
    scored = sum(query.scored for query in queries)
    return draw_queries(queries, math.ceil(Fraction(str(ratio)) * scored), key)  # exact, so that ⌈0.07·100⌉ is 7


def draw_queries(queries: Sequence[Query], number: int, key: tuple[int | str, ...]) -> list[Query]:
    """A stratified sample of the scored queries, in their order.

    It takes max(#categories, ``number``), at most all: one of each category, the rest in proportion to the size of the
    categories, by largest remainder (ties: category name). The draw depends on the SHA-256 of ``key`` (such as seed,
    trace id, outer, inner) and the query id, so it is the same in every process and for every order of the queries.
    """
    by_category: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        if query.scored:
            by_category[query.category].append(query)
    sizes = {category: len(group) for category, group in sorted(by_category.items())}
    chosen: set[str] = set()
    for category, count in _allocate(sizes, number).items():
        drawn = sorted(by_category[category], key=lambda query: _hash_rank(key, query.query_id))[:count]
        chosen.update(query.query_id for query in drawn)
    return [query for query in queries if query.query_id in chosen]


def _allocate(sizes: dict[str, int], number: int) -> dict[str, int]:
    """The number of queries of each category: one, and a share of the rest in proportion to its size.

    Shares are rounded by largest remainder (ties: category name). No share exceeds the size of its category; the
    surplus goes to the other categories in the same order.
    """
    total = sum(sizes.values())
    rest = min(total, max(len(sizes), number)) - len(sizes)
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


def _hash_rank(key: tuple[int | str, ...], query_id: str) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, (*key, query_id))).encode(errors="surrogatepass")).digest()
