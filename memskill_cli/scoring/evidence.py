"""Evidence of a question: whether it was found, and where it was lost when the answer is wrong. No judge is needed.

Where the data name the turns (or sessions) from which an answer follows, provenance says which memories derive from
them. Evidence recall at k is the share of the named evidence from which one of the first k memories or sources derives.
A wrong answer fails at the first stage where a part of its evidence is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from memskill_cli.types import MemoryItem, Retrieved, Span
from memskill_cli.utils.text_metrics import normalise

RECALL_AT = (5, 10, 20)
KEPT_SHARE = 0.5
"""An update keeps what an item said before if at least this share of its words is still there."""
Failure = Literal["not_stored", "lost", "not_retrieved", "not_used"]
FAILURES: tuple[Failure, ...] = ("not_stored", "lost", "not_retrieved", "not_used")


@dataclass(frozen=True)
class EvidenceMap:
    """What the items of one trace's memory derive from."""

    spans: Sequence[Span]
    """The spans that were read, by their index."""
    items: Sequence[MemoryItem] = ()
    deleted: Sequence[MemoryItem] = ()
    sources_kept: bool = False
    """Whether all that was read can be retrieved as it was said."""

    def recall(self, evidence: Sequence[str], ranked: Sequence[Retrieved], k: int) -> float:
        """The share of ``evidence`` (at least one) from which one of the first ``k`` of ``ranked`` derives."""
        found = self._refs(one.item for one in ranked[:k])
        return sum(_covered(ref, found) for ref in evidence) / len(evidence)

    def failure(self, evidence: Sequence[str], shown: Sequence[Retrieved]) -> Failure:
        """The first stage at which a part of ``evidence`` is missing; ``not_used`` if all of it was shown."""
        if not all(_covered(ref, self._ever_stored) for ref in evidence):
            return "not_stored"
        if not all(_covered(ref, self._stored) for ref in evidence):
            return "lost"
        found = self._refs(one.item for one in shown)
        return "not_used" if all(_covered(ref, found) for ref in evidence) else "not_retrieved"

    @cached_property
    def _read(self) -> set[str]:
        return {source.ref for span in self.spans for source in span.sources}

    @cached_property
    def _stored(self) -> set[str]:
        return self._read if self.sources_kept else self._refs(self.items)

    @cached_property
    def _ever_stored(self) -> set[str]:
        versions = (version for item in (*self.items, *self.deleted) for version in item.history)
        return self._stored.union(*(self._refs_of_span(version.provenance.span_index) for version in versions))

    def _refs(self, items: Iterable[MemoryItem]) -> set[str]:
        return set[str]().union(*map(self._refs_of, items))

    def _refs_of(self, item: MemoryItem) -> set[str]:
        """The sources that an item derives from: those of the spans whose text it still has; a source itself."""
        if not item.history:
            return {item.item_id}
        return set[str]().union(*map(self._refs_of_span, spans_of(item)))

    def _refs_of_span(self, index: int) -> set[str]:
        return {source.ref for source in self.spans[index].sources} if 0 <= index < len(self.spans) else set()


def spans_of(item: MemoryItem) -> set[int]:
    """The indices of the spans from which an item was written, of those whose text it still has. Empty for a source."""
    if not item.history:
        return set()
    kept = (version for version in item.history[:-1] if _is_kept(version.text, item.text))
    return {item.history[-1].provenance.span_index, *(version.provenance.span_index for version in kept)}


def spans_needed(evidence: Sequence[str], spans: Sequence[Span]) -> int:
    """How many of the first ``spans`` have to be read until all of ``evidence`` was: 0 without evidence.

    It is the number of all spans, too, if a piece of evidence is in none of them.
    """
    last = dict.fromkeys(evidence, len(spans))
    for place, span in enumerate(spans, 1):
        refs = {source.ref for source in span.sources}
        last |= {ref: place for ref in evidence if _covered(ref, refs)}
    return max(last.values(), default=0)


def _is_kept(before: str, now: str) -> bool:
    words = set(normalise(before))
    return bool(words) and len(words & set(normalise(now))) >= KEPT_SHARE * len(words)


def _covered(evidence: str, refs: set[str]) -> bool:
    """Whether one of ``refs`` is this turn, a part of it, or a turn of this session."""
    return any(is_from(ref, evidence) for ref in refs)


def is_from(ref: str, evidence: str) -> bool:
    """Whether the source ``ref`` is the turn ``evidence``, a part of it, or a turn of the session ``evidence``."""
    session, _, turn = ref.rpartition(":")
    whole, _, part = turn.partition(".")
    return evidence in (ref, session) or (part.isdigit() and evidence == f"{session}:{whole}")
