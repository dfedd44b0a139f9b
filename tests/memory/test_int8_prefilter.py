"""Searching by a coarse copy finds what searching every row finds, to the last bit, whatever the rows are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.memory import int8_prefilter
from memskill_cli.memory.bank import VectorTable
from memskill_cli.types import Matrix, Vector


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor multiplies bytes wrongly, or not at all, the sums are made of larger numbers."""
    if not int8_prefilter.is_supported():
        monkeypatch.setattr(int8_prefilter, "is_supported", lambda: True)
        monkeypatch.setattr(torch, "_int_mm", lambda left, right: left.to(torch.int32) @ right.to(torch.int32))


def unit(rows: Matrix) -> Matrix:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def wild(rng: np.random.Generator, count: int, dim: int) -> Matrix:
    """Rows of many kinds: equal, nearly equal, of one number, of one large number, of none."""
    rows = rng.standard_normal((count, dim)) * rng.choice([1e-3, 1, 1e3], (count, 1))
    kind = rng.integers(0, 8, count)
    rows[kind == 1] = rows[0]
    rows[kind == 2] = rows[0] + 1e-4 * rng.standard_normal((int((kind == 2).sum()), dim))
    rows[kind == 3, 1:] *= 1e-3
    rows[kind == 4] = np.eye(dim)[rng.integers(dim)]
    rows[kind == 5] = 0
    return unit(rows)


class Both:
    """The same changes to a table that looks coarsely first, and to one that does not."""

    def __init__(self) -> None:
        self.tables = VectorTable("coarse"), VectorTable("plain")

    def change(self, name: str, *given: object) -> None:
        for table in self.tables:
            getattr(table, name)(*given)

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(int8_prefilter, "MIN_ROWS", 1)
            patch.setattr(int8_prefilter, "_PARALLEL_ROWS", 300)
            found = self.tables[0].search(vector, k)
        assert self.tables[1]._index is None
        assert found == self.tables[1].search(vector, k)
        return found


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), dim=st.sampled_from([2, 3, 16, 100, 384]), count=st.integers(1, 900))
def test_it_finds_what_looking_at_all_rows_finds(seed, dim, count):
    rng, both = np.random.default_rng(seed), Both()
    rows, vectors = wild(rng, count, dim), wild(rng, 30, dim)
    for row in rows:
        both.change("append", row)
    alive = set(range(count))
    for vector in [*vectors, *rows[:5]]:
        k = int(rng.integers(1, 40))
        found, _ = both.search(vector, k)
        assert len(found) == min(k, len(alive))
        assert set(found) <= alive
        if len(alive) > 1 and rng.random() < 0.4:
            row = int(rng.choice(sorted(alive)))
            both.change("drop", row)
            alive.remove(row)
        both.change("replace", int(rng.choice(sorted(alive))), vector)
        if rng.random() < 0.2:
            both.change("append", vector)
            alive.add(count)
            count += 1
        if rng.random() < 0.1:
            both.change("keep", sorted(alive))
            alive, count = set(range(len(alive))), len(alive)


@pytest.mark.parametrize("exact", [False, True], ids=["wild", "rows that bytes hold exactly"])
@pytest.mark.parametrize("dim", [2, 3, 16, 384, 1536])
def test_coarse_cosines_are_not_further_off_than_they_say(dim, exact):
    rng = np.random.default_rng(dim)
    rows = unit(np.sign(rng.standard_normal((2000, dim)))) if exact else wild(rng, 2000, dim)
    coarse = int8_prefilter.Int8Index(len(rows), dim)
    for vector in wild(rng, 50, dim):
        coarse.candidates(rows, np.zeros(0, np.intp), vector, 1)
        near, off = coarse._approximate(vector)
        assert np.abs(near - np.vecdot(rows, vector)).max() <= off


@pytest.mark.parametrize("dim", [2, 4])
def test_a_row_that_looks_worse_by_nearly_all_it_may_is_found(dim):
    """Pairs of rows whose order changes when they are rounded to bytes: the better one looks worse."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        vector = unit(rng.standard_normal((1, dim)))[0]
        rows = unit(vector + 0.02 * rng.standard_normal((40, dim)))
        coarse = int8_prefilter.Int8Index(len(rows), dim)
        found = coarse.candidates(rows, np.zeros(0, np.intp), vector, 1)
        near, _ = coarse._approximate(vector)
        best = np.vecdot(rows, vector).argmax()
        wrong += near.argmax() != best
        assert best in found
    assert wrong > 50


def test_few_rows_are_looked_at_twice():
    rng, table = np.random.default_rng(0), VectorTable("t")
    rows = unit(rng.standard_normal((10_000, 384)))
    for row in rows:
        table.append(row)
    table.search(rows[0], 20)
    assert table._index is not None
    none = np.zeros(0, np.intp)
    assert all(20 <= len(table._index.candidates(rows, none, vector, 20)) < 200 for vector in rows[:50])


def test_where_most_rows_may_be_the_best_all_are_looked_at(monkeypatch):
    both, anywhere = Both(), np.zeros(8, np.float32)
    for row in unit(np.random.default_rng(0).standard_normal((900, 8))):
        both.change("append", row)
    both.change("drop", 3)
    found, scores = both.search(anywhere, 5)
    assert (found, scores) == ([0, 1, 2, 4, 5], [0.0] * 5)
    monkeypatch.setattr(int8_prefilter, "MIN_ROWS", 1)
    assert both.tables[0]._prefilter(anywhere, 5) is None


def test_numbers_too_small_to_be_divided():
    rows = np.array([[1, 1e-44, 0], [0, 1, 1e-44]], np.float32)
    coarse = int8_prefilter.Int8Index(2, 3)
    with np.errstate(divide="raise", invalid="raise"):
        assert coarse.candidates(rows, np.zeros(0, np.intp), rows[0], 1).tolist() == [0]


def test_where_bytes_are_not_multiplied_fast_all_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(int8_prefilter, "is_supported", lambda: False)
    table = VectorTable("t")
    for row in unit(np.random.default_rng(0).standard_normal((int8_prefilter.MIN_ROWS, 4))):
        table.append(row)
    table.search(np.array([1, 0, 0, 0], np.float32), 3)
    assert table._index is None
