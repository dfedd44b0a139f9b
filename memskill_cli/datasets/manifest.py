"""``manifest.json``: what was prepared, from what, and how much of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class SplitSize(NamedTuple):
    """How much one split holds."""

    traces: int
    queries: int


class PartFacts(NamedTuple):
    """What the manifest keeps of a split that was prepared by itself. Fields are those of :class:`DatasetManifest`."""

    source: str
    sha256: str
    digest: str
    traces: int
    queries: int
    categories: dict[str, int]
    notes: list[str]
    created: str


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """``manifest.json``: what was prepared, from what, and how much of it.

    ``traces``, ``queries`` and ``categories`` count each trace once, even one that is in several splits.
    """

    format: int
    dataset: str
    source: str
    """URL, absolute path, or ``sample:<file name>``; several are joined by "; "."""
    sha256: str
    """Of the benchmark's file (of a folder, its fingerprint); "" where ``parts`` say it."""
    digest: str
    """Of the traces as normalised: the same for the same content, wherever it came from. See :meth:`digest_of`."""
    traces: int
    queries: int
    splits: dict[str, SplitSize]
    categories: dict[str, int]
    """Queries by category."""
    notes: list[str]
    memskill: str
    created: str
    parts: dict[str, PartFacts] = field(default_factory=dict)
    """By split, where each is prepared by itself and others may be added; {} where one file holds all splits."""
    tables: dict[str, str] = field(default_factory=dict)
    """The sha256 of each split's table as written; a split that was prepared before this was kept has none."""

    def digest_of(self, split: str) -> str:
        """What names the content of ``split``; preparing another split does not change it."""
        return self.parts[split].digest if split in self.parts else self.digest

    @property
    def shared_traces(self) -> bool:
        """Whether traces are in more than one split, so that scores on one say nothing new about another."""
        return sum(size.traces for size in self.splits.values()) > self.traces

    def to_dict(self) -> dict[str, Any]:
        splits = {name: size._asdict() for name, size in self.splits.items()}
        return asdict(self) | {"splits": splits, "parts": {name: part._asdict() for name, part in self.parts.items()}}
