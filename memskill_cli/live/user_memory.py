"""What a search of one user's memory needs, in RAM: vectors, BM25 and sources, built from the user's file.

It is built when it is first needed and then changed with each commit. It is thrown away when memory is needed for other
users, and when a write to the file fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from memskill_cli.config import MemoryConfig
from memskill_cli.datasets.spans import source_parts
from memskill_cli.live.user_file import MemoryRow, TurnRow, UserFile, VersionRow, read_time
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.retrieval import ranking_of
from memskill_cli.memory.sources import SourceIndex, SourceVectors
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.types import Action, Matrix, MemoryItem, MemoryVersion, Provenance, Source, Vector
from memskill_cli.utils.relative_dates import short_date

_CHUNK = 256
"""Sources that are indexed before other tasks run."""
Key = tuple[int, int]
"""A source: the number of its turn, and its part, from 0."""


class UserMemory:
    """The search indexes of one user. Only its event loop may use it; :meth:`load` may run in another thread."""

    def __init__(self, bank: MemoryBank, file: UserFile, encoders: EncoderPair, settings: MemoryConfig) -> None:
        self.bank = bank
        self._file, self._encoders, self._settings = file, encoders, settings
        self._sources = SourceIndex(encoders.retrieval, language=settings.language)
        self._indexed = 0  # the number of the last turn that is in the index of sources
        self._lock = asyncio.Lock()

    @classmethod
    def load(cls, file: UserFile, user_id: str, encoders: EncoderPair, settings: MemoryConfig) -> UserMemory:
        """The memories of a file. Takes about 60 µs for each; sources are indexed when they are needed."""
        rows, versions = file.memories(), file.versions()
        vectors = [to_vectors(row) for row in rows]
        stored = StoredBank(
            user_id,
            {},
            file.next_number("memory"),
            [_item(row, versions.get(row.number, []), user_id) for row in rows],
            [],
            {"state": _stack([state for state, _ in vectors]), "retrieval": _stack([own for _, own in vectors])},
        )
        bank = MemoryBank.of(stored, language=settings.language)
        if rows:  # the index of terms is made by the first search
            bank.search(ranking_of(settings), "", vectors[0][1], 1, "retrieval")
        return cls(bank, file, encoders, settings)

    @property
    def rows(self) -> int:
        """Memories and sources in RAM."""
        return len(self.bank) + len(self._sources)

    def find(self, item: str) -> MemoryItem:
        """A memory with its history, also one that was deleted since the user's file was loaded."""
        if item in self.bank:
            return self.bank.get(item)
        return next(gone for gone in self.bank.deleted if gone.item_id == item)

    def stored_vectors(self, item: str) -> tuple[bytes, bytes]:
        """The vectors of a memory in the form of a :class:`~memskill_cli.live.user_file.MemoryRow`."""
        state = to_bytes(self.bank.vectors([item], "state")[0])
        if self._encoders.retrieval is self._encoders.state:
            return state, b""
        return state, to_bytes(self.bank.vectors([item], "retrieval")[0])

    async def sources(self) -> SourceIndex | None:
        """The index of all turns of the user; None if ``memory.sources`` is off. New turns are encoded first."""
        if not self._settings.sources:
            return None
        async with self._lock:
            if not self._file.closed and (turns := self._file.turns("number > ? ORDER BY number", (self._indexed,))):
                await self._index(turns)
        return self._sources

    def erase(self, item: str) -> None:
        """A memory and turns were erased from the file. The index of sources is built anew when it is needed."""
        if item in self.bank:
            self.bank.delete(item, by_hand("", ""))
        self._sources = SourceIndex(self._encoders.retrieval, language=self._settings.language)
        self._indexed = 0

    async def _index(self, turns: Sequence[TurnRow]) -> None:
        index, labels = self._sources, self._file.session_ids()
        sources = {key: source for turn in turns for key, source in as_sources(turn, labels).items()}
        known = _valid(self._file.source_vectors() if not self._indexed else {}, sources)
        keys = list(sources)
        for first in range(0, len(keys), _CHUNK):
            chunk = {key: sources[key] for key in keys[first : first + _CHUNK]}
            await index.add(list(chunk.values()), {chunk[key].ref: known[key] for key in chunk if key in known})
            if self._sources is not index or self._file.closed:
                return  # turns were erased in the meantime
            self._keep(index, {key: source.ref for key, source in chunk.items() if key not in known})
            await asyncio.sleep(0)
            if self._sources is not index or self._file.closed:
                return
        self._indexed = turns[-1].number

    def _keep(self, index: SourceIndex, new: Mapping[Key, str]) -> None:
        """Store vectors that were computed, and those of the sources whose window the new ones have changed."""
        keys = {ref: key for key, ref in new.items()}
        vectors = {key: index.vectors(ref) for key, ref in new.items()}
        for ref in {index.before(ref) for ref in keys} - keys.keys() - {""}:
            vectors[self._key_of(ref)] = index.vectors(ref)
        if vectors:
            self._file.keep_source_vectors({key: (to_bytes(v.own), to_bytes(v.window)) for key, v in vectors.items()})

    def _key_of(self, ref: str) -> Key:
        session_id, _, place = ref.rpartition(":")
        position, _, part = place.partition(".")
        (turn,) = self._file.turns(
            "session = (SELECT number FROM sessions WHERE session_id = ?) AND position = ?", (session_id, int(position))
        )
        return turn.number, int(part or 0)


def as_sources(turn: TurnRow, session_ids: Mapping[int, str]) -> dict[Key, Source]:
    """A turn as a source, or as several if it is long."""
    date, ref = read_time(turn.said).date().isoformat(), f"{session_ids[turn.session]}:{turn.position}"
    parts = [turn.text[start:end].strip() for start, end in source_parts(turn.text)]
    refs = [ref] if len(parts) == 1 else [f"{ref}.{part}" for part in range(len(parts))]
    return {
        (turn.number, part): Source(refs[part], date, turn.speaker, text) for part, text in enumerate(parts) if text
    }


def _valid(stored: Mapping[Key, tuple[bytes, bytes]], sources: Mapping[Key, Source]) -> dict[Key, SourceVectors]:
    """The stored vectors that need not be made again. A window is out of date if the source after it has no vectors:
    it was added later."""
    after: dict[str, Key] = {}  # by session, the source that was looked at last
    valid = {}
    for key in reversed(list(sources)):
        session = sources[key].session
        if key in stored and (session not in after or after[session] in stored):
            valid[key] = SourceVectors(*map(_vector, stored[key]))
        after[session] = key
    return valid


def to_vectors(row: MemoryRow) -> tuple[Vector, Vector]:
    """The vectors (D,) of a memory in the state and in the retrieval space."""
    state = _vector(row.state)
    return state, _vector(row.retrieval) if row.retrieval else state


def to_bytes(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()


def version_row(version: MemoryVersion, at: str) -> VersionRow:
    """A version of a memory bank as it is stored."""
    origin = version.provenance
    names = (orjson.dumps(list(some)).decode() for some in (origin.skills, origin.speakers))
    skills, speakers = names
    return VersionRow(version.action.value, version.text, at, origin.span_index, skills, origin.date, speakers)


def by_hand(user_id: str, at: str) -> Provenance:
    """The origin of a version that a call made, not a span."""
    return Provenance(user_id, -1, (), -1, short_date(at))


def _item(row: MemoryRow, versions: Sequence[VersionRow], user_id: str) -> MemoryItem:
    history = tuple(
        MemoryVersion(
            Action(version.action),
            version.text,
            Provenance(
                user_id,
                version.span,
                tuple(orjson.loads(version.skills)),
                version.span,
                version.date,
                tuple(orjson.loads(version.speakers)),
            ),
        )
        for version in versions
    )
    return MemoryItem(item_id(row.number), row.text, history)


def item_id(number: int) -> str:
    """The id of a memory in its bank."""
    return f"m{number:06d}"


def number_of(item: str) -> int:
    """The number of a memory from its id in the bank."""
    return int(item[1:])


def _vector(data: bytes) -> Vector:
    return np.frombuffer(data, "<f4")


def _stack(vectors: Sequence[Vector]) -> Matrix:
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
