"""The queries that went worst, with what memory gave them; of many, a bounded number that stands for all kinds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from memskill_cli.reports import page
from memskill_cli.reports.run_files import Files, Row, entries, number, texts, words
from memskill_cli.types import Move

MOST = 25
"""Queries shown."""
RETRIEVED = 8
"""Retrieved memories shown with each."""
FAILED = 10
"""Queries without a score shown."""


@dataclass(frozen=True, slots=True)
class Scored:
    """As much of a line of ``results.jsonl`` as is held for all of them. ``at`` is its place in the file."""

    at: int
    category: str
    f1: float | None
    judge: float | None
    success: float | None
    error: str

    @classmethod
    def of(cls, at: int, row: Row) -> Scored:
        won = row.get("success")
        return cls(
            at,
            words(row, "category"),
            number(row, "f1"),
            number(row, "judge"),
            float(won) if isinstance(won, bool) else number(row, "success"),
            words(row, "error")[:200],
        )


@dataclass(frozen=True)
class Memory:
    """A retrieved memory as shown; ``holds`` says that one of the truths stands in it."""

    text: str
    score: float | None
    holds: bool


@dataclass(frozen=True)
class Example:
    """One query in full."""

    row: Row
    scored: Scored
    truths: list[str]
    retrieved: list[Memory]
    more: int
    """Retrieved memories that are left out."""
    moves: list[Move]
    rank: int
    """Place, from 1, of the first retrieved memory in which a truth stands; 0 if there is none."""

    @property
    def question(self) -> str:
        return words(self.row, "question") or words(self.row, "query_id")

    @property
    def query_id(self) -> str:
        return words(self.row, "query_id")

    @property
    def opening(self) -> str:
        """What a game said first."""
        return words(self.row, "opening")

    @property
    def prediction(self) -> str:
        return words(self.row, "prediction")

    @property
    def verdict(self) -> str:
        """Its scores in a few characters."""
        told = [f"F1 {page.score(self.scored.f1)}"] if self.scored.f1 is not None else []
        told += [f"judge {self.scored.judge:g}"] if self.scored.judge is not None else []
        if self.scored.success is not None:
            steps = number(self.row, "steps")
            won = "succeeded" if self.scored.success else "failed"
            told = [won + (f" in {steps:g} steps" if steps is not None else "")]
        return ", ".join(told)


@dataclass(frozen=True)
class Examples:
    """The worst queries, and some of those without a score."""

    worst: list[Example]
    imperfect: int
    """Queries that were not answered fully, of which ``worst`` shows some."""
    failed: list[Example]
    unscored: int


def score_of(scored: Scored) -> float | None:
    """What a query is ranked by: success, else the verdict, else F1."""
    return next((v for v in (scored.success, scored.judge, scored.f1) if v is not None), None)


def examples(files: Files, scored: Sequence[Scored]) -> Examples:
    """Read the chosen lines once more; the file may be far larger than what is shown of it."""
    imperfect = [row for row in scored if (value := score_of(row)) is not None and value < 1]
    unscored = [row for row in scored if score_of(row) is None]
    chosen = _in_turn(imperfect)[:MOST]
    wanted = {row.at: row for row in (*chosen, *unscored[:FAILED])}
    found = {at: _example(row, wanted[at]) for at, row in enumerate(files.rows("results.jsonl")) if at in wanted}
    return Examples(
        [found[row.at] for row in chosen if row.at in found],
        len(imperfect),
        [found[row.at] for row in unscored[:FAILED] if row.at in found],
        len(unscored),
    )


def _in_turn(rows: Sequence[Scored]) -> list[Scored]:
    """Worst first; those that are equally bad in turn by category, so that no category hides the others."""
    seen: defaultdict[tuple[float, float, str], int] = defaultdict(int)
    keyed = []
    for row in rows:
        bad = score_of(row) or 0.0, row.f1 or 0.0
        turn = (*bad, row.category)
        keyed.append(((*bad, seen[turn], row.at), row))
        seen[turn] += 1
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def _example(row: Row, scored: Scored) -> Example:
    truths = texts(row, "truths")
    memories = [
        Memory(words(m, "text"), number(m, "score"), _holds(words(m, "text"), truths))
        for m in entries(row, "retrieved")
    ]
    rank = next((place for place, memory in enumerate(memories, 1) if memory.holds), 0)
    more = len(memories) - len(memories[:RETRIEVED])
    moves = [
        Move(words(m, "command"), words(m, "observation"), m.get("valid") is not False)
        for m in entries(row, "transcript")
    ]
    return Example(row, scored, truths, memories[:RETRIEVED], more, moves, rank)


def _holds(text: str, truths: Sequence[str]) -> bool:
    """Whether a truth stands in ``text`` word for word (case aside)."""
    return any(
        truth.strip() and re.search(rf"(?<!\w){re.escape(truth.strip())}(?!\w)", text, re.IGNORECASE)
        for truth in truths
    )
