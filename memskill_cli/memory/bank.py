"""The memory bank of one trace: its items, found again by cosine similarity in two embedding spaces.

Retrieval is exact and takes place in this process; Chroma (``store``) is where banks are kept. Writing is behind
reading: a bank lives in memory while its trace is read and is written once, in bulk, by :meth:`MemoryBank.save`. One
write through Chroma costs milliseconds and its search is approximate, while an episode changes a bank hundreds of times
and needs exact answers. Nothing is lost by it: a trace that is cut short is read again, its model calls from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memskill_cli.errors import MemoryBankError
from memskill_cli.memory import int8_prefilter
from memskill_cli.memory.stored_bank import SPACES, BankStore, Space, StoredBank
from memskill_cli.types import Action, Matrix, MemoryItem, MemoryVersion, Provenance, Retrieved, Vector

_FIRST_CAPACITY = 64
_MANY = 8  # of so many rows one may be put aside to be compared: more take longer to copy than all to read


class MemoryBank:
    """The memory items of one trace, in the order they were inserted.

    Item ids count up from ``m000001`` and are never used twice. Vectors must be of unit length (or all zeros, for a
    text without features) and of one dimension a space. Not for several threads at once.

    ``complete`` holds the facts given to the last :meth:`save`, and is None before there was one.
    """

    def __init__(self, bank_id: str, *, store: BankStore | None = None) -> None:
        self.bank_id = bank_id
        self.complete: dict[str, str] | None = None
        self._store = store
        self._items: dict[str, MemoryItem] = {}
        self._deleted: dict[str, MemoryItem] = {}
        self._next_number = 1
        self._by_row: list[MemoryItem] = []  # a deleted item's row is never found
        self._rows: dict[str, int] = {}
        self._tables: dict[Space, VectorTable] = {space: VectorTable(f"{bank_id}: {space}") for space in SPACES}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> list[MemoryItem]:
        return list(self._items.values())

    @property
    def deleted(self) -> list[MemoryItem]:
        """Items that are gone, in the order they went. Their history ends with the deletion."""
        return list(self._deleted.values())

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def get(self, item_id: str) -> MemoryItem:
        """MemoryBankError: there is no such item (any more)."""
        try:
            return self._items[item_id]
        except KeyError:
            gone = "was deleted" if item_id in self._deleted else "is unknown"
            raise MemoryBankError(f"memory bank {self.bank_id}: item {item_id} {gone}") from None

    def insert(self, text: str, state: Vector, retrieval: Vector, provenance: Provenance) -> MemoryItem:
        text = _printable(text)
        item_id = f"m{self._next_number:06d}"
        item = MemoryItem(item_id, text, (MemoryVersion(Action.INSERT, text, provenance),))
        self._append(item, state, retrieval)
        self._next_number += 1
        return item

    def update(self, item_id: str, text: str, state: Vector, retrieval: Vector, provenance: Provenance) -> MemoryItem:
        """The item with a new text and new vectors, in its old place."""
        text = _printable(text)
        version = MemoryVersion(Action.UPDATE, text, provenance)
        item = MemoryItem(item_id, text, (*self.get(item_id).history, version))
        checked = self._checked(state, retrieval)
        for space, vector in checked.items():
            self._tables[space].replace(self._rows[item_id], vector)
        self._items[item_id] = self._by_row[self._rows[item_id]] = item
        return item

    def delete(self, item_id: str, provenance: Provenance) -> None:
        """Take an item out. It is found no more, but its history stays (:attr:`deleted`)."""
        item = self.get(item_id)
        version = MemoryVersion(Action.DELETE, "", provenance)
        self._deleted[item_id] = MemoryItem(item_id, item.text, (*item.history, version))
        del self._items[item_id]
        row = self._rows.pop(item_id)
        for table in self._tables.values():
            table.drop(row)
        if len(self._by_row) > max(_FIRST_CAPACITY, 2 * len(self._items)):
            self._compact()

    def retrieve(self, vector: Vector, k: int, space: Space) -> list[Retrieved]:
        """The (at most) k items with the highest cosine to ``vector``, best first, ties in order of insertion."""
        rows, scores = self._tables[space].search(vector, k)
        return list(map(Retrieved, [self._by_row[row] for row in rows], scores))

    def vectors(self, item_ids: Sequence[str], space: Space) -> Matrix:
        """(N, D), the vectors of items in the order asked for; (0, D) for none, D being 0 in a bank never filled."""
        for item_id in item_ids:
            self.get(item_id)
        return self._tables[space].take([self._rows[item_id] for item_id in item_ids])

    def save(self, complete: dict[str, str] | None = None) -> None:
        """Write everything to the store, replacing what it had of this bank.

        ``complete`` are facts to find again on opening (which checkpoint wrote this, say). A bank whose saving was cut
        short is not there for :meth:`open`. MemoryBankError: the bank has no store, or the store failed.
        """
        if self._store is None:
            raise MemoryBankError(f"memory bank {self.bank_id}: it has no store to be saved in")
        stored = self.stored(complete)
        self._store.write(stored)
        self.complete = stored.complete

    @classmethod
    def open(cls, bank_id: str, store: BankStore) -> MemoryBank | None:
        """A saved bank as it was, deleted items' history included; None if there is no (completely saved) one."""
        stored = store.read(bank_id)
        return None if stored is None else cls.of(stored, store)

    def stored(self, complete: dict[str, str] | None = None) -> StoredBank:
        """All of the bank as it is now, for a store; ``complete``: see :meth:`save`."""
        ids = list(self._items)
        vectors = {space: self.vectors(ids, space) for space in SPACES}
        return StoredBank(self.bank_id, dict(complete or {}), self._next_number, self.items, self.deleted, vectors)

    @classmethod
    def of(cls, stored: StoredBank, store: BankStore | None = None) -> MemoryBank:
        """A bank as it was when it was stored."""
        bank = cls(stored.bank_id, store=store)
        for row, item in enumerate(stored.items):
            bank._append(item, stored.vectors["state"][row], stored.vectors["retrieval"][row])
        bank._deleted = {item.item_id: item for item in stored.deleted}
        bank._next_number = stored.next_number
        bank.complete = stored.complete
        return bank

    def _append(self, item: MemoryItem, state: Vector, retrieval: Vector) -> None:
        for space, vector in self._checked(state, retrieval).items():
            self._tables[space].append(vector)
        self._items[item.item_id] = item
        self._rows[item.item_id] = len(self._by_row)
        self._by_row.append(item)

    def _checked(self, state: Vector, retrieval: Vector) -> dict[Space, Vector]:
        """Both vectors are looked at before either table changes, so that the tables always agree."""
        given: dict[Space, Vector] = {"state": state, "retrieval": retrieval}
        return {space: self._tables[space].checked(vector) for space, vector in given.items()}

    def _compact(self) -> None:
        kept = list(self._rows.values())
        for table in self._tables.values():
            table.keep(kept)
        self._by_row = list(self._items.values())
        self._rows = {item_id: row for row, item_id in enumerate(self._items)}


class VectorTable:
    """Rows of unit vectors in one float32 matrix, which doubles when full, so that nothing is stacked to search it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._matrix: Matrix = np.zeros((0, 0), np.float32)  # (capacity, D)
        self._alive = np.zeros(0, np.bool_)  # (capacity,)
        self._count = 0  # rows in use, dropped ones among them
        self._dropped = 0
        self._sketch: int8_prefilter.Sketch | None = None

    def checked(self, vector: Vector) -> Vector:
        """The vector, if it fits into this table; else MemoryBankError."""
        vector = np.asarray(vector, np.float32)
        dim = self._matrix.shape[1]
        if vector.ndim != 1 or (dim and vector.shape != (dim,)):
            expected = f"({dim},)" if dim else "(D,)"
            raise MemoryBankError(
                f"memory bank {self._label} vector of shape {vector.shape}, expected {expected}",
                hint="a bank is opened with the encoders it was written with",
            )
        length = float(np.dot(vector, vector))
        if length and not abs(length - 1.0) < 1e-3:
            raise MemoryBankError(f"memory bank {self._label} vector of length {length**0.5:.4g}, expected 1")
        return vector

    def append(self, vector: Vector) -> None:
        if self._count == len(self._matrix):
            self._grow(len(vector))
        self._matrix[self._count] = vector
        self._alive[self._count] = True
        self._count += 1

    def replace(self, row: int, vector: Vector) -> None:
        self._matrix[row] = vector
        if self._sketch:
            self._sketch.changed(row)

    def drop(self, row: int) -> None:
        self._alive[row] = False
        self._dropped += 1

    def keep(self, rows: list[int]) -> None:
        """Only these rows, numbered anew in this order."""
        self._matrix = self._matrix[rows]
        self._alive = np.ones(len(rows), np.bool_)
        self._count, self._dropped = len(rows), 0
        self._sketch = None

    def take(self, rows: list[int]) -> Matrix:
        return self._matrix[rows]

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The k best rows and their cosines, best first, ties by row.

        ``vecdot`` takes one dot product a row: equal vectors get equal scores to the last bit wherever they lie, which
        a matrix product does not promise. It also uses no threads: those of a matrix product wait for each other, which
        on a busy machine takes twenty times as long as the work (8 ms instead of 0.5 for 10,000 rows). (The coarse look
        at tables of 32,768 rows and more does use some.)
        """
        k = min(k, self._count - self._dropped)
        if k <= 0:
            return [], []
        vector = self.checked(vector)
        rows = self._worth_a_look(vector, k)
        if rows is not None:
            scores = np.vecdot(self._matrix[rows], vector)
        else:
            scores = np.vecdot(self._matrix[: self._count], vector)
            if self._dropped:
                scores[~self._alive[: self._count]] = -np.inf
        place = len(scores) - k
        best = (scores >= np.partition(scores, place)[place]).nonzero()[0]  # more than k if the last ones tie
        best = best[(-scores[best]).argsort(kind="stable")[:k]]
        return (best if rows is None else rows[best]).tolist(), scores[best].tolist()

    def _worth_a_look(self, vector: Vector, k: int) -> npt.NDArray[np.intp] | None:
        """The few rows among which the k best are, in order, none that was dropped; None where all must be seen."""
        if self._count < int8_prefilter.WORTH_IT or not int8_prefilter.usable():
            return None
        self._sketch = self._sketch or int8_prefilter.Sketch(*self._matrix.shape)
        dropped = (~self._alive[: self._count]).nonzero()[0]
        rows = self._sketch.candidates(self._matrix[: self._count], dropped, vector, k)
        return rows if len(rows) < self._count / _MANY else None

    def _grow(self, dim: int) -> None:
        capacity = max(_FIRST_CAPACITY, 2 * self._count)
        matrix = np.zeros((capacity, dim), np.float32)
        alive = np.zeros(capacity, np.bool_)
        if self._count:
            matrix[: self._count], alive[: self._count] = self._matrix, self._alive
        self._matrix, self._alive, self._sketch = matrix, alive, None


def _printable(text: str) -> str:
    """Half of a surrogate pair (half an emoji, in broken input) can't be stored."""
    return text.encode("utf-8", "replace").decode()
