"""The sources of a memory: what was said, kept as it was and searchable beside what was written about it.

A source is one turn (or a part of a long one) with its date and speaker. Sources are ranked for a question by a sum of
seven features. Each was chosen, and its weight fitted, on the evidence of LoCoMo's train split (docs/retrieval.md); all
are general facts about conversations:

=========== =========================================================================== ====
``dense``   cosine of the source and the question, standardised over all sources        0.6
``window``  the same for the source with its two neighbours in the session              0.45
``lexical`` BM25; terms of up to three neighbours on each side count 0.7, 0.5 and 0.3   0.5
``session`` BM25 of the whole session                                                   0.4
``length``  logarithm of the number of characters: long turns say more                  0.7
``speaker`` 1 if the question names the speaker                                         1.35
``reply``   1 if the source before it ends with a question mark: it is an answer        0.55
=========== =========================================================================== ====
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.memory.lexical import LexicalIndex, Ranking, analyzer
from memskill_cli.memory.vector_table import VectorTable, standardise, top_k
from memskill_cli.types import Source, Vector

WEIGHTS: Mapping[str, float] = {
    "dense": 0.6,
    "window": 0.45,
    "lexical": 0.5,
    "session": 0.4,
    "length": 0.7,
    "speaker": 1.35,
    "reply": 0.55,
}
NEIGHBOUR_WEIGHTS = (0.7, 0.5, 0.3)
"""Weights of the terms of the first, second and third neighbour on either side."""
Scores = npt.NDArray[np.float64]


class SourceIndex:
    """The sources of one trace, in the order in which they were read. Not thread-safe."""

    def __init__(self, encoder: CachedEncoder, *, language: str = "english", label: str = "sources") -> None:
        self._encoder, self._analyzer = encoder, analyzer(language)
        self._refs: set[str] = set()
        self._order: list[Source] = []
        self._bags: list[list[str]] = []
        self._own, self._windows = VectorTable(f"{label}: own"), VectorTable(f"{label}: window")
        self._lexical = LexicalIndex()
        self._sessions = LexicalIndex()
        self._session_rows: dict[str, int] = {}  # by label
        self._session_bags: list[Counter[str]] = []
        self._lengths: list[float] = []
        self._replies: list[bool] = []
        self._columns: tuple[npt.NDArray[np.intp], Scores, Scores] | None = None

    def __len__(self) -> int:
        return len(self._order)

    async def add(self, sources: Sequence[Source]) -> None:
        """Add the sources that are not there yet. Those of one session must come in its order."""
        first = len(self._order)
        for source in sources:
            if source.ref not in self._refs:
                self._refs.add(source.ref)
                self._order.append(source)
                self._bags.append(self._analyzer.terms(f"{source.speaker} {source.text}"))
        if first == len(self._order):
            return
        new, changed = range(first, len(self._order)), range(max(0, first - len(NEIGHBOUR_WEIGHTS)), len(self._order))
        windows = range(max(0, first - 1), len(self._order))
        own = await self._encoder.aencode([_line(source) for source in self._order[first:]])
        around = await self._encoder.aencode([self._window_text(row) for row in windows])
        for vector in own:
            self._own.append(self._own.checked(vector))
        for row, vector in zip(windows, around, strict=True):
            if row < first:
                self._windows.replace(row, self._windows.checked(vector))
            else:
                self._windows.append(self._windows.checked(vector))
        for row in changed:
            self._lexical.put(row, self._weighted_terms(row))
        self._index_sessions(new)
        self._lengths += [math.log1p(len(self._order[row].text)) for row in new]
        self._replies += map(self._is_reply, new)
        self._columns = None

    def _index_sessions(self, new: Sequence[int]) -> None:
        """Index the terms of the ``new`` rows with those of their sessions."""
        changed: set[int] = set()
        for row in new:
            session = self._session_rows.setdefault(self._order[row].session, len(self._session_rows))
            if session == len(self._session_bags):
                self._session_bags.append(Counter())
            self._session_bags[session].update(self._bags[row])
            changed.add(session)
        for session in changed:
            self._sessions.put(session, {term: float(count) for term, count in self._session_bags[session].items()})

    def _fixed(self) -> tuple[npt.NDArray[np.intp], Scores, Scores]:
        """What no question changes, of each source: the row of its session, its length, and whether it is a reply."""
        if self._columns is None:
            sessions = np.array([self._session_rows[source.session] for source in self._order], np.intp)
            self._columns = sessions, standardise(np.array(self._lengths)), np.array(self._replies, np.float64)
        return self._columns

    def search(self, ranking: Ranking, question: str, vector: Vector, k: int) -> list[tuple[Source, float]]:
        """The ``k`` best sources for a question and its embedding ``vector`` (D,), best first, with their scores.

        Ties are in order of reading.
        """
        if not self._order:
            return []
        scores = self.scores(ranking, question, vector)
        return [(self._order[row], float(scores[row])) for row in top_k(scores, k)]

    def scores(self, ranking: Ranking, question: str, vector: Vector) -> Scores:
        """The score of each source, in order of reading. ``dense`` is the cosine alone, ``lexical`` BM25 alone."""
        if ranking == "dense":
            return self._own.scores(vector)
        if ranking == "lexical":
            return self._lexical.scores(self._analyzer.terms(question), len(self._order))
        features = self.features(question, vector)
        return np.sum([WEIGHTS[name] * values for name, values in features.items()], axis=0)

    def features(self, question: str, vector: Vector) -> dict[str, Scores]:
        """The features of the hybrid score, by name, each with one value for every source."""
        _, lengths, replies = self._fixed()
        return {
            "dense": standardise(self._own.scores(vector)),
            "window": standardise(self._windows.scores(vector)),
            "lexical": standardise(self.scores("lexical", question, vector)),
            "session": standardise(self._session_scores(question)),
            "length": lengths,
            "speaker": self._named_speakers(question),
            "reply": replies,
        }

    def _session_scores(self, question: str) -> Scores:
        """BM25 of the session of each source."""
        by_session = self._sessions.scores(self._analyzer.terms(question), len(self._session_rows))
        return by_session[self._fixed()[0]]

    def _named_speakers(self, question: str) -> Scores:
        """1 for the sources of speakers whom the question names; all 0 if it names all speakers or none."""
        names = {source.speaker for source in self._order}
        named = {name for name in names if name and re.search(rf"\b{re.escape(name)}\b", question, re.IGNORECASE)}
        if len(named) == len(names):
            return np.zeros(len(self._order))
        return np.array([source.speaker in named for source in self._order], np.float64)

    def _is_reply(self, row: int) -> bool:
        before = self._neighbour(row, -1)
        return before is not None and self._order[before].text.rstrip().endswith("?")

    def _neighbour(self, row: int, offset: int) -> int | None:
        """The row of another source of the same session."""
        other = row + offset
        if 0 <= other < len(self._order) and self._order[other].session == self._order[row].session:
            return other
        return None

    def _window_text(self, row: int) -> str:
        rows = (self._neighbour(row, offset) for offset in (-1, 0, 1))
        return "\n".join(_line(self._order[other]) for other in rows if other is not None)

    def _weighted_terms(self, row: int) -> dict[str, float]:
        bag: dict[str, float] = {}
        for offset in range(-len(NEIGHBOUR_WEIGHTS), len(NEIGHBOUR_WEIGHTS) + 1):
            other = self._neighbour(row, offset)
            weight = NEIGHBOUR_WEIGHTS[abs(offset) - 1] if offset else 1.0
            for term in self._bags[other] if other is not None else ():
                bag[term] = bag.get(term, 0.0) + weight
        return bag


def _line(source: Source) -> str:
    return f"{source.speaker}: {source.text}" if source.speaker else source.text
