"""Where memory banks are kept: a Chroma folder, or a Chroma server.

A bank is two collections, one a space, with a document, a vector and the metadata of each item (``order``, where it
comes from, and its history as JSON), so that any Chroma client can read and search it. A third holds what was deleted.
Facts about the bank are metadata of its ``state`` collection, and are written last: without them it isn't there.

What a bank holds can always be made again, from model calls that are cached. So one that is damaged counts as not
there, and a folder whose database is damaged is set aside; both with a notice.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from memskill_cli.errors import MemoryBankError
from memskill_cli.memory.chroma import connect, is_server
from memskill_cli.memory.stored_bank import SPACES, StoredBank
from memskill_cli.types import Action, Matrix, MemoryItem, MemoryVersion, Provenance

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

FORMAT = 1
_AT_ONCE = 64
"""Items that are written at once. Chroma lets nothing else run in this process meanwhile: 0.4 ms an item."""
_PAUSE = 0.1
"""Seconds before a client is opened anew."""
_BREATH = 0.03
"""Seconds between two writes, for others."""
# Inner product: on unit vectors it is the cosine, and Chroma gives the vectors back bit for bit, which its "cosine"
# does not (it scales them again).
_CONFIGURATION = {"hnsw": {"space": "ip"}}


class _Row(NamedTuple):
    """An item as Chroma gives it back."""

    item: MemoryItem
    order: int
    vector: np.ndarray


class _DamagedError(Exception):
    """A bank is not what was written."""


class MemoryStore:
    """Memory banks in a folder, or on a Chroma server given by its URL. One process at a time may have a folder open.

    ``notice`` is told of damage. MemoryBankError: the place can't be opened, or Chroma failed later on.
    """

    def __init__(self, location: Path | str, notice: Callable[[str], None] = lambda text: None) -> None:
        self._location, self._notice = str(location), notice
        self._using = threading.Lock()  # one bank at a time: a read may have to open the client anew
        self._hint = "see that the folder can be written, and the disk is not full"
        if is_server(location):
            self._hint = "see that a Chroma server runs there: chroma run --path FOLDER --port PORT"
        with self._failing("opened"):
            self._client = connect(location, notice)

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._failing("closed"):
            self._client.close()

    def write(self, bank: StoredBank) -> None:
        """Replace the bank of this id. Only when all of it is written does it count as there."""
        with self._using, self._failing(f"written (bank {bank.bank_id})"):
            self._drop(bank.bank_id)
            heads = {space: self._create(bank.bank_id, space) for space in SPACES}
            for space, collection in heads.items():
                self._fill(collection, bank.items, bank.vectors[space])
            if bank.deleted:
                no_vectors = np.ones((len(bank.deleted), 1), np.float32)
                self._fill(self._create(bank.bank_id, "deleted"), bank.deleted, no_vectors)
            heads["state"].modify(metadata=_head(bank))

    def read(self, bank_id: str) -> StoredBank | None:
        """The bank of this id as it was written; None if there is none, or none that was written to its end.

        One that is not as it was written is told of, and is none either.
        """
        from chromadb.errors import ChromaError

        with self._using, self._failing(f"read (bank {bank_id})"):
            collection = self._find(bank_id, "state")
            head = (collection and collection.metadata) or {}
            if not head.get("complete"):
                return None
            if head["format"] != FORMAT:
                raise MemoryBankError(f"memory bank {bank_id} has format {head['format']}, this program reads {FORMAT}")
            try:
                return self._whole_if_found(bank_id, head)
            except (_DamagedError, ChromaError, LookupError, TypeError, ValueError) as error:
                what = f"memory bank {bank_id} in {self._location} is damaged ({_line(error)})"
                self._notice(f"{what}: it is built again, from replies that are cached")
                return None

    def _whole_if_found(self, bank_id: str, head: Mapping[str, Any]) -> StoredBank:
        """:meth:`_whole`; Chroma's client now and then finds no index that is there, and does when opened anew.

        (Seen with chromadb 1.5 on a busy machine in 2 of 100 folders: "Nothing found on disk".)
        """
        from chromadb.errors import InternalError

        try:
            return self._whole(bank_id, head)
        except InternalError:
            self._client.close()
            time.sleep(_PAUSE)
            self._client = connect(self._location, self._notice)
            return self._whole(bank_id, head)

    def _whole(self, bank_id: str, head: Mapping[str, Any]) -> StoredBank:
        """All of a bank, unless it is other than what its head says."""
        rows = {space: self._rows(bank_id, space, head["items"]) for space in SPACES}
        deleted = self._rows(bank_id, "deleted", head["deleted"]) if head["deleted"] else []
        bank = StoredBank(
            bank_id,
            orjson.loads(head["complete"]),
            head["next_number"],
            [row.item for row in rows["state"]],
            [row.item for row in deleted],
            {space: _stack([row.vector for row in rows[space]]) for space in SPACES},
        )
        if head.get("sha256", _digest(bank)) != _digest(bank):  # banks of earlier versions have none
            raise _DamagedError("it does not hold what was written")
        return bank

    def _drop(self, bank_id: str) -> None:
        # The state collection first: it is what says that the bank is there.
        for part in (*SPACES, "deleted"):
            if self._find(bank_id, part) is not None:
                self._client.delete_collection(_name(bank_id, part))

    def _find(self, bank_id: str, part: str) -> Collection | None:
        from chromadb.errors import NotFoundError

        try:
            return self._client.get_collection(_name(bank_id, part), embedding_function=None)
        except NotFoundError:
            return None

    def _create(self, bank_id: str, part: str) -> Collection:
        return self._client.create_collection(
            _name(bank_id, part),
            metadata={"bank_id": bank_id, "part": part},
            configuration=_CONFIGURATION,
            embedding_function=None,
        )

    def _fill(self, collection: Collection, items: Sequence[MemoryItem], vectors: Matrix) -> None:
        size = min(_AT_ONCE, self._client.get_max_batch_size())
        for start in range(0, len(items), size):
            if start:
                time.sleep(_BREATH)
            part = items[start : start + size]
            collection.add(
                ids=[item.item_id for item in part],
                embeddings=vectors[start : start + size],
                documents=[item.text for item in part],
                metadatas=[_metadata(item, start + place) for place, item in enumerate(part)],
            )

    def _rows(self, bank_id: str, part: str, expected: int) -> list[_Row]:
        collection = self._find(bank_id, part)
        if collection is None or collection.count() != expected:
            raise _DamagedError(f"items of its {part} part are missing")
        size = self._client.get_max_batch_size()
        rows: list[_Row] = []
        for start in range(0, expected, size):
            got = collection.get(include=["embeddings", "documents", "metadatas"], limit=size, offset=start)
            parts = zip(got["ids"], got["documents"], got["metadatas"], got["embeddings"], strict=True)
            rows += [_row(*part) for part in parts]
        return sorted(rows, key=lambda row: row.order)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except MemoryBankError:
            raise
        except Exception as error:
            raise MemoryBankError(
                f"{self._location}: memory could not be {what}: {_line(error)}", hint=self._hint
            ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _name(bank_id: str, part: str) -> str:
    """A collection's name has rules; a trace's id has none."""
    return f"memskill-{hashlib.sha256(bank_id.encode()).hexdigest()[:32]}-{part}"


def _head(bank: StoredBank) -> dict[str, Any]:
    return {
        "bank_id": bank.bank_id,
        "part": "state",
        "format": FORMAT,
        "items": len(bank.items),
        "deleted": len(bank.deleted),
        "next_number": bank.next_number,
        "complete": orjson.dumps(bank.complete).decode(),
        "sha256": _digest(bank),
    }


def _digest(bank: StoredBank) -> str:
    """Of all that is in a bank."""
    facts = (bank.complete, bank.next_number, bank.items, bank.deleted)
    sha = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
    for space in SPACES:
        sha.update(np.ascontiguousarray(bank.vectors[space], "<f4").tobytes())
    return sha.hexdigest()


def _metadata(item: MemoryItem, order: int) -> dict[str, Any]:
    """Where the current version comes from, in fields a Chroma query can filter by; everything else in ``history``."""
    latest = item.history[-1].provenance
    return {
        "order": order,
        "trace_id": latest.trace_id,
        "span_index": latest.span_index,
        "step": latest.step,
        "skills": ", ".join(latest.skills),
        "history": orjson.dumps(item.history).decode(),
    }


def _row(item_id: str, text: str, metadata: dict[str, Any], vector: Sequence[float]) -> _Row:
    history = tuple(_version(entry) for entry in orjson.loads(metadata["history"]))
    return _Row(MemoryItem(item_id, text, history), metadata["order"], np.asarray(vector, np.float32))


def _version(entry: dict[str, Any]) -> MemoryVersion:
    origin = entry["provenance"]
    provenance = Provenance(origin["trace_id"], origin["span_index"], tuple(origin["skills"]), origin["step"])
    return MemoryVersion(Action(entry["action"]), entry["text"], provenance)


def _stack(vectors: list[np.ndarray]) -> Matrix:
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
