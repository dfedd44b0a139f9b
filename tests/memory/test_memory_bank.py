"""The memory bank: retrieval is brute force, whatever was done to the bank before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.errors import MemoryBankError
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.stored_bank import Space
from memskill_cli.types import Action, MemoryVersion, Provenance, Vector

# Few directions, so that ties are the rule. The second space has another dimension and other directions.
STATE = [np.array(v, np.float32) for v in ((1, 0), (0, 1), (0.6, 0.8), (-1, 0), (0, 0))]
RETRIEVAL = [np.array(v, np.float32) for v in ((1, 0, 0), (0, 0.6, 0.8), (0, 0, -1))]


def origin(step: int = 0) -> Provenance:
    return Provenance("trace", step, ("keep-facts",), step)


def unit(rng: np.random.Generator, dim: int) -> Vector:
    vector = rng.standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class Mirror:
    """What a bank should be: a plain list of [id, text, state, retrieval]."""

    rows: list[tuple[str, str, Vector, Vector]] = field(default_factory=list)

    def best(self, vector: Vector, k: int, space: Space) -> list[tuple[str, str]]:
        column = 2 if space == "state" else 3
        scores = [-float(np.dot(row[column].astype(np.float64), vector.astype(np.float64))) for row in self.rows]
        order = sorted(range(len(self.rows)), key=lambda place: (scores[place], place))
        return [self.rows[place][:2] for place in order[:k]]


CHANGES = st.tuples(
    st.sampled_from(["insert", "insert", "insert", "update", "delete"]),
    st.integers(0, 10_000),
    st.sampled_from(range(len(STATE))),
    st.sampled_from(range(len(RETRIEVAL))),
)


@given(st.lists(CHANGES, max_size=80), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_retrieve_is_brute_force_after_any_changes(changes, k):
    bank, mirror = MemoryBank("trace"), Mirror()
    for step, (change, pick, s, r) in enumerate(changes):
        text = f"text {step}"
        if change == "insert" or not mirror.rows:
            item = bank.insert(text, STATE[s], RETRIEVAL[r], origin(step))
            mirror.rows.append((item.item_id, text, STATE[s], RETRIEVAL[r]))
            continue
        place = pick % len(mirror.rows)
        item_id = mirror.rows[place][0]
        if change == "update":
            bank.update(item_id, text, STATE[s], RETRIEVAL[r], origin(step))
            mirror.rows[place] = (item_id, text, STATE[s], RETRIEVAL[r])
        else:
            bank.delete(item_id, origin(step))
            del mirror.rows[place]
    assert [(item.item_id, item.text) for item in bank.items] == [row[:2] for row in mirror.rows]
    assert len(bank) == len(mirror.rows)
    for space, queries in (("state", STATE), ("retrieval", RETRIEVAL)):
        for query in queries:
            found = bank.retrieve(query, k, space)
            assert [(hit.item.item_id, hit.item.text) for hit in found] == mirror.best(query, k, space)


WORDS = ("harbour", "cat", "porto", "sister")
WORDY = st.tuples(
    st.sampled_from(["insert", "insert", "insert", "update", "delete"]),
    st.integers(0, 10_000),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
    st.sampled_from(range(len(RETRIEVAL))),
)


@given(st.lists(WORDY, min_size=1, max_size=80), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_lexical_and_hybrid_search_do_not_depend_on_how_the_bank_came_about(changes, asked):
    """A bank that was searched all along ranks like a new one with the same items."""
    bank, question = MemoryBank("trace"), " ".join(asked)
    for step, (change, pick, words, r) in enumerate(changes):
        text, items = " ".join(words), bank.items
        if change == "insert" or not items:
            bank.insert(text, STATE[0], RETRIEVAL[r], origin(step))
        elif change == "update":
            bank.update(items[pick % len(items)].item_id, text, STATE[0], RETRIEVAL[r], origin(step))
        else:
            bank.delete(items[pick % len(items)].item_id, origin(step))
        bank.search("lexical", question, RETRIEVAL[0], 3, "retrieval")
    fresh = MemoryBank.of(bank.stored())
    for ranking in ("lexical", "hybrid"):
        found = bank.search(ranking, question, RETRIEVAL[0], 99, "retrieval")
        assert found == fresh.search(ranking, question, RETRIEVAL[0], 99, "retrieval")
        assert len(found) == len(bank)


def test_hybrid_is_the_sum_of_both_standardised():
    bank = MemoryBank("trace")
    for text, r in (("a cat in porto", 0), ("a cat", 1), ("my sister", 1), ("the harbour of porto", 2)):
        bank.insert(text, STATE[0], RETRIEVAL[r], origin())
    scores = []
    for ranking in ("dense", "lexical"):
        by_id = {hit.item.item_id: hit.score for hit in bank.search(ranking, "cat", RETRIEVAL[1], 9, "retrieval")}
        values = np.array([by_id[item.item_id] for item in bank.items])
        scores.append((values - values.mean()) / values.std())
    found = {hit.item.item_id: hit.score for hit in bank.search("hybrid", "cat", RETRIEVAL[1], 9, "retrieval")}
    assert [found[item.item_id] for item in bank.items] == pytest.approx(list(sum(scores)), abs=1e-6)


def test_lexical_search_sees_the_date_and_the_speakers():
    bank = MemoryBank("trace")
    for step, (day, speaker) in enumerate([("8 May 2023", "Ivo"), ("9 June 2023", "Mara")]):
        about = Provenance("trace", step, (), step, day, (speaker,))
        bank.insert("has a cat", STATE[0], RETRIEVAL[0], about)
    first = [bank.search("lexical", asked, RETRIEVAL[0], 1, "retrieval")[0].item.item_id for asked in ("Mara", "May")]
    assert first == ["m000002", "m000001"]


def test_retrieve_is_brute_force_in_many_dimensions_and_after_compaction():
    rng = np.random.default_rng(0)
    bank, mirror = MemoryBank("trace"), Mirror()
    for number in range(700):
        row = (f"text {number}", unit(rng, 96), unit(rng, 40))
        item = bank.insert(*row, origin())
        mirror.rows.append((item.item_id, *row))
    for place in reversed(range(0, 700, 5)):
        for offset in (4, 2, 1):
            bank.delete(mirror.rows[place + offset][0], origin())
            del mirror.rows[place + offset]
    for space, dim in (("state", 96), ("retrieval", 40)):
        for _ in range(20):
            query = unit(rng, dim)
            found = bank.retrieve(query, 20, space)
            assert [(hit.item.item_id, hit.item.text) for hit in found] == mirror.best(query, 20, space)
            by_hand = [float(bank.vectors([hit.item.item_id], space)[0].astype(float) @ query) for hit in found]
            assert [hit.score for hit in found] == pytest.approx(by_hand, abs=1e-6)


def test_equal_vectors_score_the_same_bits_wherever_they_lie():
    rng = np.random.default_rng(1)
    twin, other = unit(rng, 384), unit(rng, 384)
    bank = MemoryBank("trace")
    twins = []
    for number in range(1001):
        same = number % 37 == 0
        item = bank.insert("twin" if same else "filler", twin if same else unit(rng, 384), other, origin())
        twins += [item.item_id] if same else []
    found = bank.retrieve(unit(rng, 384), 1001, "state")
    assert len({hit.score for hit in found if hit.item.text == "twin"}) == 1
    assert [hit.item.item_id for hit in bank.retrieve(twin, len(twins), "state")] == twins


@pytest.mark.parametrize("dim", [384, 768, 1, 7, 33, 385, 1000])
def test_of_equal_items_the_first_inserted_wins_in_a_bank_of_any_size(dim):
    rng = np.random.default_rng(dim)
    twin, query = unit(rng, dim), unit(rng, dim)
    bank = MemoryBank("trace")
    for size in range(1, 90):
        bank.insert("twin", twin, twin, origin())
        k = min(size, 3)
        assert [hit.item for hit in bank.retrieve(query, k, "state")] == bank.items[:k]


def test_history_of_an_item_from_insertion_to_deletion():
    bank = MemoryBank("trace")
    item = bank.insert("likes tea", STATE[0], RETRIEVAL[0], origin(1))
    kept = bank.insert("has a dog", STATE[1], RETRIEVAL[0], origin(1))
    changed = bank.update(item.item_id, "likes coffee", STATE[0], RETRIEVAL[0], origin(2))
    assert bank.get(item.item_id) == changed
    assert changed.history == (
        MemoryVersion(Action.INSERT, "likes tea", origin(1)),
        MemoryVersion(Action.UPDATE, "likes coffee", origin(2)),
    )
    bank.delete(item.item_id, origin(3))
    assert bank.items == [kept]
    (gone,) = bank.deleted
    assert gone.history == (*changed.history, MemoryVersion(Action.DELETE, "", origin(3)))


def test_ids_are_never_used_twice():
    bank = MemoryBank("trace")
    first = bank.insert("a", STATE[0], RETRIEVAL[0], origin())
    bank.delete(first.item_id, origin())
    assert first.item_id == "m000001"
    assert bank.insert("b", STATE[0], RETRIEVAL[0], origin()).item_id == "m000002"


def test_an_unknown_or_deleted_item_is_an_error_and_changes_nothing():
    bank = MemoryBank("trace")
    item = bank.insert("a", STATE[0], RETRIEVAL[0], origin())
    bank.delete(bank.insert("b", STATE[0], RETRIEVAL[0], origin()).item_id, origin())
    for wrong in ("m000002", "m000009", ""):
        for act in (
            lambda wrong=wrong: bank.get(wrong),
            lambda wrong=wrong: bank.delete(wrong, origin()),
            lambda wrong=wrong: bank.update(wrong, "c", STATE[0], RETRIEVAL[0], origin()),
            lambda wrong=wrong: bank.vectors([wrong], "state"),
        ):
            with pytest.raises(MemoryBankError, match="trace"):
                act()
    assert bank.items == [item]


@pytest.mark.parametrize(
    "vector",
    [
        np.array([1, 0, 0], np.float32),
        np.array([[1, 0]], np.float32),
        np.array([3, 0], np.float32),
        np.array([np.nan, 0], np.float32),
    ],
    ids=["dimension", "shape", "length", "nan"],
)
def test_a_vector_that_does_not_fit_is_refused_and_leaves_both_spaces_alike(vector):
    bank = MemoryBank("trace")
    item = bank.insert("a", STATE[0], RETRIEVAL[0], origin())
    with pytest.raises(MemoryBankError, match="vector"):
        bank.insert("b", STATE[0], STATE[0], origin())  # right for one space, wrong for the other
    with pytest.raises(MemoryBankError, match="vector"):
        bank.insert("b", vector, RETRIEVAL[0], origin())
    with pytest.raises(MemoryBankError, match="vector"):
        bank.update(item.item_id, "b", vector, RETRIEVAL[0], origin())
    with pytest.raises(MemoryBankError, match="vector"):
        bank.retrieve(vector, 1, "state")
    other = bank.insert("b", STATE[1], RETRIEVAL[1], origin())
    assert [hit.item for hit in bank.retrieve(STATE[1], 2, "state")] == [other, item]
    assert [hit.item for hit in bank.retrieve(RETRIEVAL[1], 1, "retrieval")] == [other]


def test_an_empty_bank_finds_nothing():
    bank = MemoryBank("trace")
    assert bank.retrieve(STATE[0], 20, "state") == []
    assert bank.vectors([], "state").shape == (0, 0)
    bank.insert("a", STATE[0], RETRIEVAL[0], origin())
    assert bank.vectors([], "retrieval").shape == (0, 3)


def test_vectors_are_those_given_in_the_order_asked_for():
    bank = MemoryBank("trace")
    for index in (0, 1, 2):
        bank.insert("x", STATE[index], RETRIEVAL[index], origin())
    taken = bank.vectors(["m000003", "m000001"], "state")
    assert taken.dtype == np.float32
    assert np.array_equal(taken, np.stack([STATE[2], STATE[0]]))
    taken[:] = 0  # a copy: the bank is not changed by what is done to it
    assert np.array_equal(bank.vectors(["m000003"], "state")[0], STATE[2])


def test_a_bank_without_a_store_cannot_be_saved():
    with pytest.raises(MemoryBankError, match="no store"):
        MemoryBank("trace").save()


def test_items_with_equal_texts_are_found_after_every_change() -> None:
    bank, one = MemoryBank("b"), np.ones(1, np.float32)
    origin = Provenance("b", 0, (), 0)

    def equal(text: str, key: Callable[[str], str] = str.lower) -> list[str]:
        return [item.item_id for item in bank.equal(text, key)]

    first, second, third = (bank.insert(text, one, one, origin).item_id for text in ("Tea", "milk", "TEA"))
    assert equal("tea") == [first, third]
    fourth = bank.insert("tEa", one, one, origin).item_id
    bank.update(first, "coffee", one, one, origin)
    bank.update(second, "tea", one, one, origin)
    assert equal("tea") == [second, third, fourth]
    assert equal("milk") == []
    bank.delete(third, origin)
    assert (equal("tea"), equal("Coffee")) == ([second, fourth], [first])
    assert equal("x", lambda text: str(len(text))) == []
    assert equal("abc", lambda text: str(len(text))) == [second, fourth]
    assert equal("tea") == [second, fourth]
