"""``manifest.json``: the description of prepared data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class SplitSize(NamedTuple):
    """The size of one split."""

    traces: int
    queries: int


class PartFacts(NamedTuple):
    """The entry of a split that was prepared separately. Fields are as in :class:`DatasetManifest`."""

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
    """The content of ``manifest.json``: what was prepared, its source and its size.

    ``traces``, ``queries`` and ``categories`` count each trace once, even one that is in several splits.
    """

    format: int
    dataset: str
    source: str
    """URL, absolute path, or ``sample:<file name>``; several are joined by "; "."""
    sha256: str
    """sha256 of the benchmark's file, or the fingerprint of its folder; "" if ``parts`` have it."""
    digest: str
    """Digest of the normalised traces. It does not depend on their source. See :meth:`digest_of`."""
    traces: int
    queries: int
    splits: dict[str, SplitSize]
    categories: dict[str, int]
    """Queries by category."""
    notes: list[str]
    memskill: str
    created: str
    parts: dict[str, PartFacts] = field(default_factory=dict)
    """By split, if splits are prepared separately and others may be added; {} if one file has all splits."""
    tables: dict[str, str] = field(default_factory=dict)
    """The sha256 of each split's table. Splits that were prepared by older versions have none."""
    reading: dict[str, Any] = field(default_factory=dict)
    """How the files were read, for conversations of one's own: kind, format, roles, options. {} for benchmarks."""

    def digest_of(self, split: str) -> str:
        """The digest of the content of ``split``. Preparing another split does not change it."""
        return self.parts[split].digest if split in self.parts else self.digest

    @property
    def shared_traces(self) -> bool:
        """Whether some traces are in several splits; then scores on a split are not scores on unseen traces."""
        return sum(size.traces for size in self.splits.values()) > self.traces

    def to_dict(self) -> dict[str, Any]:
        splits = {name: size._asdict() for name, size in self.splits.items()}
        return asdict(self) | {"splits": splits, "parts": {name: part._asdict() for name, part in self.parts.items()}}
