"""Storage of memory banks in a Chroma folder or on a Chroma server.

A bank has two collections, one per space, with a document, a vector and metadata for each item (``order``, provenance,
and its history as JSON), so that any Chroma client can read and search it. A third collection has the deleted items.
The metadata of the ``state`` collection describe the bank. They are written last: without them the bank does not exist.

A bank can always be built again from cached model calls. So a damaged bank counts as missing, and a folder with a
damaged database is renamed; both with a notice.
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
from memskill_cli.utils.resource_limits import limit_reached

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

FORMAT = 1
_BATCH = 64
"""Items per write. A write blocks all other threads of this process for 0.4 ms per item."""
_REOPEN_DELAY = 0.1
"""Seconds before a client is opened again."""
_WRITE_PAUSE = 0.03
"""Seconds between two writes, so that other threads can run."""
# Inner product: equal to the cosine for unit vectors. Chroma then returns the vectors unchanged; with "cosine" it
# normalizes them again.
_CONFIGURATION = {"hnsw": {"space": "ip"}}


class _Row(NamedTuple):
    """An item as read from Chroma."""

    item: MemoryItem
    order: int
    vector: np.ndarray


class _DamagedError(Exception):
    """The content of a bank differs from what was written."""


class MemoryStore:
    """Memory banks in a folder, or on a Chroma server (URL). Only one process at a time may open a folder.

    ``notice`` is called on damage. MemoryBankError if the location cannot be opened, or Chroma fails later.
    """

    def __init__(self, location: Path | str, notice: Callable[[str], None] = lambda text: None) -> None:
        self._location, self._notice = str(location), notice
        self._lock = threading.Lock()  # one bank at a time: a read may reopen the client
        self._hint = (
            "check that the folder is writable, the disk is not full, and no limit of the shell is reached (ulimit -n)"
        )
        if is_server(location):
            self._hint = "check that a Chroma server is running there: chroma run --path FOLDER --port PORT"
        with self._wrap_errors("opened"):
            self._client = connect(location, notice)

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._wrap_errors("closed"):
            self._client.close()

    def write(self, bank: StoredBank) -> None:
        """Write a bank, replacing the one of this id. The bank exists only after the complete write."""
        with self._lock, self._wrap_errors(f"written (bank {bank.bank_id})"):
            self._drop(bank.bank_id)
            collections = {space: self._create(bank.bank_id, space) for space in SPACES}
            for space, collection in collections.items():
                self._fill(collection, bank.items, bank.vectors[space])
            if bank.deleted:
                no_vectors = np.ones((len(bank.deleted), 1), np.float32)
                self._fill(self._create(bank.bank_id, "deleted"), bank.deleted, no_vectors)
            collections["state"].modify(metadata=_head(bank))

    def read(self, bank_id: str) -> StoredBank | None:
        """The bank of this id; None if it is missing, incomplete or damaged.

        Damage is reported with a notice. MemoryBankError if the bank has another format.
        """
        from chromadb.errors import ChromaError

        with self._lock, self._wrap_errors(f"read (bank {bank_id})"):
            collection = self._find(bank_id, "state")
            head = (collection and collection.metadata) or {}
            if not head.get("complete"):
                return None
            if head["format"] != FORMAT:
                problem = f"has format {head['format']}, but this version reads format {FORMAT}"
                raise MemoryBankError(f"memory bank {bank_id} {problem}")
            try:
                return self._load_with_retry(bank_id, head)
            except (_DamagedError, ChromaError, LookupError, TypeError, ValueError) as error:
                problem = f"memory bank {bank_id} in {self._location} is damaged ({_first_line(error)})"
                self._notice(f"{problem}: it will be built again from cached replies")
                return None

    def _load_with_retry(self, bank_id: str, head: Mapping[str, Any]) -> StoredBank:
        """:meth:`_load`, with a new client after an error: Chroma sometimes does not find an existing index.

        (With chromadb 1.5 on a busy machine, in 2 of 100 folders: "Nothing found on disk".)
        """
        from chromadb.errors import InternalError

        try:
            return self._load(bank_id, head)
        except InternalError:
            self._client.close()
            time.sleep(_REOPEN_DELAY)
            self._client = connect(self._location, self._notice)
            return self._load(bank_id, head)

    def _load(self, bank_id: str, head: Mapping[str, Any]) -> StoredBank:
        """Read a bank. _DamagedError if its content does not match the digest in ``head``."""
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
        if head.get("sha256", _digest(bank)) != _digest(bank):  # banks of earlier versions have no digest
            raise _DamagedError("its content differs from what was written")
        return bank

    def _drop(self, bank_id: str) -> None:
        # The state collection first: without it the bank does not exist.
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
        size = min(_BATCH, self._client.get_max_batch_size())
        for start in range(0, len(items), size):
            if start:
                time.sleep(_WRITE_PAUSE)
            part = items[start : start + size]
            collection.add(
                ids=[item.item_id for item in part],
                embeddings=vectors[start : start + size],
                documents=[item.text for item in part],
                metadatas=[_metadata(item, start + i) for i, item in enumerate(part)],
            )

    def _rows(self, bank_id: str, part: str, expected: int) -> list[_Row]:
        collection = self._find(bank_id, part)
        if collection is None or collection.count() != expected:
            raise _DamagedError(f"items of its {part} collection are missing")
        size = self._client.get_max_batch_size()
        rows: list[_Row] = []
        for start in range(0, expected, size):
            got = collection.get(include=["embeddings", "documents", "metadatas"], limit=size, offset=start)
            parts = zip(got["ids"], got["documents"], got["metadatas"], got["embeddings"], strict=True)
            rows += [_row(*part) for part in parts]
        return sorted(rows, key=lambda row: row.order)

    @contextmanager
    def _wrap_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except MemoryBankError:
            raise
        except Exception as error:
            limit = limit_reached(error)
            raise MemoryBankError(
                f"{self._location}: memory could not be {action}: {limit.message if limit else _first_line(error)}",
                hint=limit.hint if limit else self._hint,
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _name(bank_id: str, part: str) -> str:
    """Collection name: a hash, because Chroma restricts names and trace ids are arbitrary."""
    return f"memskill-{hashlib.sha256(bank_id.encode()).hexdigest()[:32]}-{part}"


def _head(bank: StoredBank) -> dict[str, Any]:
    return {
        "bank_id": bank.bank_id,
        "part": "state",
        "format": FORMAT,
        "items": len(bank.items),
        "deleted": len(bank.deleted),
        "next_number": bank.next_number,
        "complete": orjson.dumps(bank.metadata).decode(),
        "sha256": _digest(bank),
    }


def _digest(bank: StoredBank) -> str:
    """sha256 of the content of a bank."""
    lists = [[_facts(item) for item in items] for items in (bank.items, bank.deleted)]
    sha = hashlib.sha256(orjson.dumps((dict(sorted(bank.metadata.items())), bank.next_number, *lists)))
    for space in SPACES:
        sha.update(np.ascontiguousarray(bank.vectors[space], "<f4").tobytes())
    return sha.hexdigest()


def _facts(item: MemoryItem) -> dict[str, Any]:
    return {"item_id": item.item_id, "text": item.text, "history": [_entry(version) for version in item.history]}


def _entry(version: MemoryVersion) -> dict[str, Any]:
    """A version as JSON. Date and speakers are left out where there are none: earlier versions did not have them, and
    the digests of their banks stay valid."""
    origin = version.provenance
    known = {name: value for name, value in (("date", origin.date), ("speakers", origin.speakers)) if value}
    provenance = {
        "trace_id": origin.trace_id,
        "span_index": origin.span_index,
        "skills": origin.skills,
        "step": origin.step,
        **known,
    }
    return {"action": version.action, "text": version.text, "provenance": provenance}


def _metadata(item: MemoryItem, order: int) -> dict[str, Any]:
    """The provenance of the current version, in fields that Chroma can filter by, and all versions in ``history``."""
    latest = item.history[-1].provenance
    return {
        "order": order,
        "trace_id": latest.trace_id,
        "span_index": latest.span_index,
        "step": latest.step,
        "skills": ", ".join(latest.skills),
        "history": orjson.dumps([_entry(version) for version in item.history]).decode(),
    }


def _row(item_id: str, text: str, metadata: dict[str, Any], vector: Sequence[float]) -> _Row:
    history = tuple(_version(entry) for entry in orjson.loads(metadata["history"]))
    return _Row(MemoryItem(item_id, text, history), metadata["order"], np.asarray(vector, np.float32))


def _version(entry: dict[str, Any]) -> MemoryVersion:
    origin = entry["provenance"]
    provenance = Provenance(
        origin["trace_id"],
        origin["span_index"],
        tuple(origin["skills"]),
        origin["step"],
        origin.get("date", ""),
        tuple(origin.get("speakers", ())),
    )
    return MemoryVersion(Action(entry["action"]), entry["text"], provenance)


def _stack(vectors: list[np.ndarray]) -> Matrix:
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
