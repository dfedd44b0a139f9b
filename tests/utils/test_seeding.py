"""Seeds and batches: from names and numbers alone, the same on every machine."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.utils.seeding import batch_indices, seed_from


def test_a_seed_is_the_first_63_bits_of_the_digest_of_its_parts() -> None:
    """A run that is resumed with a later version, or on another machine, must draw what it would have drawn."""
    digest = hashlib.sha256(b"42\x1fpair\x1f0").hexdigest()
    assert seed_from(42, "pair", 0) == int(digest[:16], 16) // 2
    assert seed_from(1, 23) != seed_from(12, 3), "parts do not run into each other"
    assert all(seed_from(i) < 2**63 for i in range(50))


@given(size=st.integers(1, 7), population=st.integers(1, 9), seed=st.integers(0, 99))
def test_batches_walk_through_all_traces_again_and_again(size: int, population: int, seed: int) -> None:
    batches = [batch_indices(size, population, number, seed) for number in range(2 * population)]
    assert {len(batch) for batch in batches} == {size}
    read = [trace for batch in batches for trace in batch]
    for cycle in range(2 * size):
        assert Counter(read[cycle * population :][:population]) == Counter(range(population))


def test_each_walk_has_an_order_of_its_own() -> None:
    orders = {tuple(batch_indices(8, 8, number, seed)) for number in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_another_version_draws_the_same() -> None:
    """A run may go on under a later version: what its seed draws must not change with it."""
    order = list(range(10))
    digest = hashlib.sha256(b"42\x1ftraces\x1f3").hexdigest()  # the fourth walk of a run with seed 42
    random.Random(int(digest[:16], 16) // 2).shuffle(order)
    assert batch_indices(5, 10, 6, 42) + batch_indices(5, 10, 7, 42) == order
