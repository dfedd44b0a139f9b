"""The memory bank of one trace: its items, retrieved by cosine similarity in two embedding spaces.

Retrieval is exact and runs in this process. Chroma (``store``) only stores banks. A bank is kept in RAM while its trace
is processed, and :meth:`MemoryBank.save` writes it once, in bulk. Reason: one write to Chroma takes milliseconds and
its search is approximate, while an episode changes a bank hundreds of times and needs exact results. A crash loses no
paid work: an interrupted trace is processed again with model calls from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from memskill_cli.errors import MemoryBankError
from memskill_cli.memory.lexical import LexicalIndex, Ranking, analyzer
from memskill_cli.memory.stored_bank import SPACES, BankStore, Space, StoredBank
from memskill_cli.memory.vector_table import MIN_CAPACITY, VectorTable, standardise, top_k
from memskill_cli.types import Action, Matrix, MemoryItem, MemoryVersion, Provenance, Retrieved, Vector


class MemoryBank:
    """The memory items of one trace, in order of insertion.

    Item ids count up from ``m000001`` and are never reused. Vectors must have unit length (or be all zeros, for a text
    without features) and one dimension per space. Not thread-safe.

    ``language`` is that of the texts, for BM25.

    ``metadata`` is what the last :meth:`save` was given; None if the bank was never saved.
    """

    def __init__(self, bank_id: str, *, store: BankStore | None = None, language: str = "english") -> None:
        self.bank_id = bank_id
        self.language = language
        self.metadata: dict[str, str] | None = None
        self._store = store
        self._items: dict[str, MemoryItem] = {}
        self._deleted: dict[str, MemoryItem] = {}
        self._next_number = 1
        self._by_row: list[MemoryItem] = []  # contains deleted items, whose rows are never found
        self._rows: dict[str, int] = {}
        self._tables: dict[Space, VectorTable] = {space: VectorTable(f"{bank_id}: {space}") for space in SPACES}
        self._lexical: LexicalIndex | None = None  # made by the first search that needs it
        self._equal: dict[str, set[str]] = {}  # ids by the key of their text, for the last key of equal()
        self._key: Callable[[str], str] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> list[MemoryItem]:
        return list(self._items.values())

    @property
    def deleted(self) -> list[MemoryItem]:
        """Deleted items, in order of deletion. Their history ends with the deletion."""
        return list(self._deleted.values())

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def get(self, item_id: str) -> MemoryItem:
        """MemoryBankError if the item is unknown or was deleted."""
        try:
            return self._items[item_id]
        except KeyError:
            problem = "was deleted" if item_id in self._deleted else "is unknown"
            raise MemoryBankError(f"memory bank {self.bank_id}: item {item_id} {problem}") from None

    def insert(self, text: str, state: Vector, retrieval: Vector, provenance: Provenance) -> MemoryItem:
        text = _valid_unicode(text)
        item_id = f"m{self._next_number:06d}"
        item = MemoryItem(item_id, text, (MemoryVersion(Action.INSERT, text, provenance),))
        self._append(item, state, retrieval)
        self._next_number += 1
        return item

    def update(self, item_id: str, text: str, state: Vector, retrieval: Vector, provenance: Provenance) -> MemoryItem:
        """Replace text and vectors of an item. Its position does not change."""
        text = _valid_unicode(text)
        version = MemoryVersion(Action.UPDATE, text, provenance)
        item = MemoryItem(item_id, text, (*self.get(item_id).history, version))
        checked = self._checked(state, retrieval)
        for space, vector in checked.items():
            self._tables[space].replace(self._rows[item_id], vector)
        self._forget_key(self._items[item_id])
        self._note_key(item)
        self._items[item_id] = self._by_row[self._rows[item_id]] = item
        self._index_terms(self._rows[item_id], item)
        return item

    def delete(self, item_id: str, provenance: Provenance) -> None:
        """Delete an item. It is not found any more; its history stays in :attr:`deleted`."""
        item = self.get(item_id)
        version = MemoryVersion(Action.DELETE, "", provenance)
        self._deleted[item_id] = MemoryItem(item_id, item.text, (*item.history, version))
        del self._items[item_id]
        self._forget_key(item)
        row = self._rows.pop(item_id)
        for table in self._tables.values():
            table.drop(row)
        if self._lexical is not None:
            self._lexical.remove(row)
        if len(self._by_row) > max(MIN_CAPACITY, 2 * len(self._items)):
            self._compact()

    def retrieve(self, vector: Vector, k: int, space: Space) -> list[Retrieved]:
        """The top k items by cosine similarity to ``vector`` (D,), best first, ties in order of insertion."""
        rows, scores = self._tables[space].search(vector, k)
        return list(map(Retrieved, [self._by_row[row] for row in rows], scores))

    def search(self, ranking: Ranking, text: str, vector: Vector, k: int, space: Space) -> list[Retrieved]:
        """The top k items for a text and its embedding ``vector`` (D,), best first, ties in order of insertion.

        ``dense`` ranks by cosine similarity, ``lexical`` by BM25 over the items with their dates and speakers,
        ``hybrid`` by the sum of both, each standardised over all items.
        """
        if ranking == "dense":
            return self.retrieve(vector, k, space)
        if not self._items:
            return []
        scores = self._terms_index().scores(analyzer(self.language).terms(text), len(self._by_row))
        rows = None  # of the items, if some rows are of deleted ones
        if len(self._items) < len(self._by_row):
            rows = np.fromiter(self._rows.values(), np.intp, len(self._rows))
            scores = scores[rows]
        if ranking == "hybrid":
            cosines = self._tables[space].scores(vector)
            scores = standardise(scores) + standardise(cosines if rows is None else cosines[rows])
        found = top_k(scores, k)
        return [Retrieved(self._by_row[i if rows is None else rows[i]], float(scores[i])) for i in found]

    def equal(self, text: str, key: Callable[[str], str]) -> list[MemoryItem]:
        """The items whose text has the same ``key`` as ``text``, in order of insertion. Fast for one key at a time."""
        if key is not self._key:
            self._key, self._equal = key, {}
            for item in self._items.values():
                self._note_key(item)
        return [self._items[item_id] for item_id in sorted(self._equal.get(key(text), ()), key=self._rows.__getitem__)]

    def vectors(self, item_ids: Sequence[str], space: Space) -> Matrix:
        """The vectors of items, (N, D), in the order of ``item_ids``. D is 0 if nothing was ever inserted."""
        for item_id in item_ids:
            self.get(item_id)
        return self._tables[space].take([self._rows[item_id] for item_id in item_ids])

    def save(self, metadata: dict[str, str] | None = None) -> None:
        """Write the bank to the store, replacing an earlier version.

        ``metadata`` is available again after :meth:`open` (for example the checkpoint that wrote the bank).
        :meth:`open` ignores a bank whose save was interrupted. MemoryBankError if the bank has no store, or the store
        failed.
        """
        if self._store is None:
            raise MemoryBankError(f"memory bank {self.bank_id}: no store to save it to")
        stored = self.stored(metadata)
        self._store.write(stored)
        self.metadata = stored.metadata

    @classmethod
    def open(cls, bank_id: str, store: BankStore) -> MemoryBank | None:
        """The saved bank, with the history of deleted items; None if there is no completely saved one."""
        stored = store.read(bank_id)
        return None if stored is None else cls.of(stored, store)

    def stored(self, metadata: dict[str, str] | None = None) -> StoredBank:
        """The current content of the bank, for a store. ``metadata``: see :meth:`save`."""
        ids = list(self._items)
        vectors = {space: self.vectors(ids, space) for space in SPACES}
        return StoredBank(self.bank_id, dict(metadata or {}), self._next_number, self.items, self.deleted, vectors)

    @classmethod
    def of(cls, stored: StoredBank, store: BankStore | None = None, language: str = "english") -> MemoryBank:
        """The bank with this content."""
        bank = cls(stored.bank_id, store=store, language=language)
        for row, item in enumerate(stored.items):
            bank._append(item, stored.vectors["state"][row], stored.vectors["retrieval"][row])
        bank._deleted = {item.item_id: item for item in stored.deleted}
        bank._next_number = stored.next_number
        bank.metadata = stored.metadata
        return bank

    def _append(self, item: MemoryItem, state: Vector, retrieval: Vector) -> None:
        for space, vector in self._checked(state, retrieval).items():
            self._tables[space].append(vector)
        self._items[item.item_id] = item
        self._rows[item.item_id] = len(self._by_row)
        self._by_row.append(item)
        self._note_key(item)
        self._index_terms(self._rows[item.item_id], item)

    def _checked(self, state: Vector, retrieval: Vector) -> dict[Space, Vector]:
        """Check both vectors before either table changes, so that the tables stay consistent."""
        given: dict[Space, Vector] = {"state": state, "retrieval": retrieval}
        return {space: self._tables[space].checked(vector) for space, vector in given.items()}

    def _compact(self) -> None:
        kept = list(self._rows.values())
        for table in self._tables.values():
            table.keep(kept)
        self._by_row = list(self._items.values())
        self._rows = {item_id: row for row, item_id in enumerate(self._items)}
        self._lexical = None

    def _terms_index(self) -> LexicalIndex:
        if self._lexical is None:
            self._lexical = LexicalIndex()
            for item_id, row in self._rows.items():
                self._index_terms(row, self._items[item_id])
        return self._lexical

    def _note_key(self, item: MemoryItem) -> None:
        if self._key is not None:
            self._equal.setdefault(self._key(item.text), set()).add(item.item_id)

    def _forget_key(self, item: MemoryItem) -> None:
        if self._key is not None:
            ids = self._equal[self._key(item.text)]
            ids.discard(item.item_id)
            if not ids:
                del self._equal[self._key(item.text)]

    def _index_terms(self, row: int, item: MemoryItem) -> None:
        if self._lexical is not None:
            self._lexical.put(row, analyzer(self.language).bag(item.described))


def _valid_unicode(text: str) -> str:
    """``text`` with lone surrogates (half an emoji in broken input) replaced: they cannot be stored."""
    return text.encode("utf-8", "replace").decode()
