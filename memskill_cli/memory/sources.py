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
from typing import NamedTuple

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


class SourceVectors(NamedTuple):
    """The retrieval vectors (D,) of a source: of itself, and of it with its two neighbours in the session."""

    own: Vector
    window: Vector


class _Facts(NamedTuple):
    """What a search needs to know of each source, (rows,), besides vectors and terms."""

    lengths: Scores
    replies: Scores
    sessions: npt.NDArray[np.intp]
    speakers: npt.NDArray[np.intp]
    names: list[str]
    """The name that each number of ``speakers`` stands for."""


class SourceIndex:
    """The sources of one trace, in the order in which they were read. Not thread-safe.

    Searches are possible while :meth:`add` waits for the encoder; they do not see the new sources yet.
    """

    def __init__(self, encoder: CachedEncoder, *, language: str = "english", label: str = "sources") -> None:
        self._encoder, self._analyzer = encoder, analyzer(language)
        self._rows: dict[str, int] = {}  # by ref
        self._order: list[Source] = []
        self._bags: list[list[str]] = []
        self._own, self._windows = VectorTable(f"{label}: own"), VectorTable(f"{label}: window")
        self._lexical = LexicalIndex()
        self._sessions = LexicalIndex()
        self._session_rows: dict[str, int] = {}  # by label
        self._session_bags: list[Counter[str]] = []
        self._rows_of_session: list[list[int]] = []
        self._places: list[tuple[int, int]] = []  # of each source: its session, and its place there
        self._facts: _Facts | None = None  # made again by the first search after a change

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, ref: object) -> bool:
        return ref in self._rows

    async def add(self, sources: Sequence[Source], known: Mapping[str, SourceVectors] | None = None) -> None:
        """Add the sources that are not there yet. Those of one session must come in its order.

        ``known`` has vectors, by ``ref``, that need not be computed again. One call at a time.
        """
        new = list({source.ref: source for source in sources if source.ref not in self._rows}.values())
        if not new:
            return
        known = known or {}
        lines = {source.ref: _line(source) for source in new if source.ref not in known}
        windows = {ref: text for ref, text in self._window_texts(new).items() if ref in self._rows or ref not in known}
        own = dict(zip(lines, await self._encoder.aencode(list(lines.values())), strict=True))
        around = dict(zip(windows, await self._encoder.aencode(list(windows.values())), strict=True))
        first = len(self._order)
        for source in new:
            self._append(source)
            self._own.append(self._own.checked(own[source.ref] if source.ref in own else known[source.ref].own))
            window = around[source.ref] if source.ref in around else known[source.ref].window
            self._windows.append(self._windows.checked(window))
        for ref in windows:
            if self._rows[ref] < first:
                self._windows.replace(self._rows[ref], self._windows.checked(around[ref]))
        self._index_terms(range(first, len(self._order)))
        self._facts = None

    def vectors(self, ref: str) -> SourceVectors:
        """The vectors of a source that was added."""
        row = [self._rows[ref]]
        return SourceVectors(self._own.take(row)[0], self._windows.take(row)[0])

    def before(self, ref: str) -> str:
        """The ref of the source before this one in its session, "" for the first. Its window changes with this one."""
        other = self._neighbour(self._rows[ref], -1)
        return "" if other is None else self._order[other].ref

    def _append(self, source: Source) -> None:
        row = self._rows[source.ref] = len(self._order)
        session = self._session_rows.setdefault(source.session, len(self._session_rows))
        if session == len(self._rows_of_session):
            self._rows_of_session.append([])
            self._session_bags.append(Counter())
        self._order.append(source)
        self._bags.append(self._analyzer.terms(f"{source.speaker} {source.text}"))
        self._places.append((session, len(self._rows_of_session[session])))
        self._rows_of_session[session].append(row)
        self._session_bags[session].update(self._bags[row])

    def _window_texts(self, new: Sequence[Source]) -> dict[str, str]:
        """The texts, by ref, of the windows that ``new`` makes or changes."""
        by_session: dict[str, list[Source]] = {}
        for source in new:
            by_session.setdefault(source.session, []).append(source)
        texts = {}
        for label, sources in by_session.items():
            there = self._rows_of_session[self._session_rows[label]][-2:] if label in self._session_rows else []
            line = [*(self._order[row] for row in there), *sources]
            for i in range(max(0, len(there) - 1), len(line)):
                texts[line[i].ref] = "\n".join(map(_line, line[max(0, i - 1) : i + 2]))
        return texts

    def _index_terms(self, rows: range) -> None:
        """Index the terms of new rows, of their neighbours and of their sessions."""
        reach = len(NEIGHBOUR_WEIGHTS)
        near = (self._neighbour(row, offset) for row in rows for offset in range(-reach, 1))
        for changed in sorted({row for row in near if row is not None}):
            self._lexical.put(changed, self._weighted_terms(changed))
        for session in {self._places[row][0] for row in rows}:
            bag = self._session_bags[session]
            self._sessions.put(session, {term: float(count) for term, count in bag.items()})

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
        return {
            "dense": standardise(self._own.scores(vector)),
            "window": standardise(self._windows.scores(vector)),
            "lexical": standardise(self.scores("lexical", question, vector)),
            "session": standardise(self._session_scores(question)),
            "length": self._known_facts().lengths,
            "speaker": self._named_speakers(question),
            "reply": self._known_facts().replies,
        }

    def _known_facts(self) -> _Facts:
        if self._facts is None:
            names: dict[str, int] = {}
            speakers = [names.setdefault(source.speaker, len(names)) for source in self._order]
            self._facts = _Facts(
                standardise(np.array([math.log1p(len(source.text)) for source in self._order])),
                np.array([self._is_reply(row) for row in range(len(self._order))], np.float64),
                np.array([session for session, _ in self._places], np.intp),
                np.array(speakers, np.intp),
                list(names),
            )
        return self._facts

    def _session_scores(self, question: str) -> Scores:
        """BM25 of the session of each source."""
        by_session = self._sessions.scores(self._analyzer.terms(question), len(self._session_rows))
        return by_session[self._known_facts().sessions]

    def _named_speakers(self, question: str) -> Scores:
        """1 for the sources of speakers whom the question names; all 0 if it names all speakers or none."""
        facts = self._known_facts()
        named = [bool(name and re.search(rf"\b{re.escape(name)}\b", question, re.IGNORECASE)) for name in facts.names]
        if all(named):
            return np.zeros(len(self._order))
        return np.array(named, np.float64)[facts.speakers]

    def _is_reply(self, row: int) -> bool:
        before = self._neighbour(row, -1)
        return before is not None and self._order[before].text.rstrip().endswith("?")

    def _neighbour(self, row: int, offset: int) -> int | None:
        """The row of another source of the same session."""
        session, place = self._places[row]
        rows = self._rows_of_session[session]
        return rows[place + offset] if 0 <= place + offset < len(rows) else None

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
