"""The stored form of a memory bank: the record that :mod:`.bank` and :mod:`.store` exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from memskill_cli.types import Matrix, MemoryItem

Space = Literal["state", "retrieval"]
SPACES: tuple[Space, ...] = ("state", "retrieval")


@dataclass(frozen=True, slots=True)
class StoredBank:
    """The content of a bank. ``vectors`` (N, D) are in the order of ``items``; ``metadata`` is the caller's."""

    bank_id: str
    metadata: dict[str, str]
    next_number: int
    items: Sequence[MemoryItem]
    deleted: Sequence[MemoryItem]
    vectors: dict[Space, Matrix]


class BankStore(Protocol):
    """Storage of banks. ``read`` returns None if there is no completely written bank of this id."""

    def write(self, bank: StoredBank) -> None: ...

    def read(self, bank_id: str) -> StoredBank | None: ...
