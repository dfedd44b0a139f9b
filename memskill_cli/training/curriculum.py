"""A growing number of spans (``train.curriculum``): the first episodes of a run read the beginning of their traces.

In short traces fewer steps share a reward, so that it says more about each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from memskill_cli.config import TrainConfig
from memskill_cli.scoring.evidence import spans_needed
from memskill_cli.types import Query, Span

LEAST_SPANS = 2
FIRST_SHARE = 4
"""An episode of the first inner epoch reads a trace's spans divided by this, rounded up."""


class Curriculum:
    """What an episode reads and is asked, by the number of inner epochs before it."""

    def __init__(self, settings: TrainConfig) -> None:
        self._epochs, self._inner_epochs = settings.curriculum, settings.inner_epochs
        self._needed: dict[tuple[str, str], int] = {}  # by trace and query; the spans of a trace are always the same

    def select(
        self, outer: int, inner: int, spans: Sequence[Span], queries: Sequence[Query]
    ) -> tuple[Sequence[Span], Sequence[Query]]:
        """The spans that are read, and the queries that can be answered from them.

        A query is left out if the data name its evidence and not all of it is in these spans. If no scored query is
        left, as many spans are added as one of them needs.
        """
        count = self.spans_read(outer * self._inner_epochs + inner, len(spans))
        if count == len(spans):
            return spans, queries
        needed = [self._spans_needed(query, spans) for query in queries]
        count = max(count, min((n for query, n in zip(queries, needed, strict=True) if query.scored), default=0))
        return spans[:count], [query for query, n in zip(queries, needed, strict=True) if n <= count]

    def spans_read(self, done: int, spans: int) -> int:
        """How many of a trace's ``spans`` are read after ``done`` inner epochs. It grows linearly."""
        if done >= self._epochs:
            return spans
        first = min(spans, max(LEAST_SPANS, -(-spans // FIRST_SHARE)))
        return first + (spans - first) * done // self._epochs

    def _spans_needed(self, query: Query, spans: Sequence[Span]) -> int:
        if not query.evidence:
            return 0
        key = (spans[0].trace_id, query.query_id)
        if key not in self._needed:
            self._needed[key] = spans_needed(query.evidence, spans)
        return self._needed[key]
