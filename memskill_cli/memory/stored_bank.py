"""A memory bank as it is stored: the record that :mod:`.bank` and :mod:`.store` exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from memskill_cli.types import Matrix, MemoryItem

Space = Literal["state", "retrieval"]
SPACES: tuple[Space, ...] = ("state", "retrieval")


@dataclass(frozen=True, slots=True)
class StoredBank:
    """All of a bank. ``vectors`` (N, D) are in the order of ``items``; ``complete`` are the facts it was saved with."""

    bank_id: str
    complete: dict[str, str]
    next_number: int
    items: Sequence[MemoryItem]
    deleted: Sequence[MemoryItem]
    vectors: dict[Space, Matrix]


class BankStore(Protocol):
    """Where banks are stored."""

    def write(self, bank: StoredBank) -> None: ...

    def read(self, bank_id: str) -> StoredBank | None: ...
