"""Select the queries with the lowest scores, with their retrieved memories; at most :data:`MOST`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from memskill_cli.reports import page
from memskill_cli.reports.run_files import Files, Row, get_dicts, get_str, number, texts
from memskill_cli.types import EnvStep

MOST = 25
"""Most queries shown."""
RETRIEVED = 8
"""Most retrieved memories shown per query."""
FAILED = 10
"""Most queries without a score shown."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The fields of a row of ``results.jsonl`` that are kept in memory for all rows. ``at``: index of the row."""

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
            get_str(row, "category"),
            number(row, "f1"),
            number(row, "judge"),
            float(won) if isinstance(won, bool) else number(row, "success"),
            get_str(row, "error")[:200],
        )


@dataclass(frozen=True)
class ShownMemory:
    """A retrieved memory; ``holds``: it contains one of the gold answers."""

    text: str
    score: float | None
    holds: bool


@dataclass(frozen=True)
class Example:
    """One query with all details."""

    row: Row
    scored: Scored
    gold_answers: list[str]
    retrieved: list[ShownMemory]
    more: int
    """Number of retrieved memories that are left out."""
    moves: list[EnvStep]
    rank: int
    """Rank, from 1, of the first retrieved memory that contains a gold answer; 0 if there is none."""

    @property
    def question(self) -> str:
        return get_str(self.row, "question") or get_str(self.row, "query_id")

    @property
    def query_id(self) -> str:
        return get_str(self.row, "query_id")

    @property
    def opening(self) -> str:
        """The first observation of a game."""
        return get_str(self.row, "opening")

    @property
    def prediction(self) -> str:
        return get_str(self.row, "prediction")

    @property
    def verdict(self) -> str:
        """The scores as a short text."""
        parts = [f"F1 {page.score(self.scored.f1)}"] if self.scored.f1 is not None else []
        parts += [f"judge {self.scored.judge:g}"] if self.scored.judge is not None else []
        if self.scored.success is not None:
            steps = number(self.row, "steps")
            won = "succeeded" if self.scored.success else "failed"
            parts = [won + (f" in {steps:g} steps" if steps is not None else "")]
        return ", ".join(parts)


@dataclass(frozen=True)
class Examples:
    """The worst queries, and some queries without a score."""

    worst: list[Example]
    imperfect: int
    """Number of queries with a score below 1."""
    failed: list[Example]
    unscored: int


def score_of(scored: Scored) -> float | None:
    """The score used for ranking: success, else the judge's, else F1."""
    return next((v for v in (scored.success, scored.judge, scored.f1) if v is not None), None)


def examples(files: Files, scored: Sequence[Scored]) -> Examples:
    """Select examples and read only their rows again, because ``results.jsonl`` may be large."""
    imperfect = [row for row in scored if (value := score_of(row)) is not None and value < 1]
    unscored = [row for row in scored if score_of(row) is None]
    chosen = _worst_first(imperfect)[:MOST]
    wanted = {row.at: row for row in (*chosen, *unscored[:FAILED])}
    found = {at: example_of(row, wanted[at]) for at, row in enumerate(files.rows("results.jsonl")) if at in wanted}
    return Examples(
        [found[row.at] for row in chosen if row.at in found],
        len(imperfect),
        [found[row.at] for row in unscored[:FAILED] if row.at in found],
        len(unscored),
    )


def _worst_first(rows: Sequence[Scored]) -> list[Scored]:
    """Worst first. Rows with equal scores alternate between categories, so that every category is represented."""
    seen: defaultdict[tuple[float, float, str], int] = defaultdict(int)
    keyed = []
    for row in rows:
        bad = score_of(row) or 0.0, row.f1 or 0.0
        turn = (*bad, row.category)
        keyed.append(((*bad, seen[turn], row.at), row))
        seen[turn] += 1
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def example_of(row: Row, scored: Scored, most: int = RETRIEVED) -> Example:
    """The query of one row with all details, and with at most ``most`` of its retrieved memories."""
    gold_answers = texts(row, "truths")
    memories = [
        ShownMemory(get_str(m, "text"), number(m, "score"), _holds(get_str(m, "text"), gold_answers))
        for m in get_dicts(row, "retrieved")
    ]
    rank = next((position for position, memory in enumerate(memories, 1) if memory.holds), 0)
    more = len(memories) - len(memories[:most])
    moves = [
        EnvStep(get_str(m, "command"), get_str(m, "observation"), m.get("valid") is not False)
        for m in get_dicts(row, "transcript")
    ]
    return Example(row, scored, gold_answers, memories[:most], more, moves, rank)


def _holds(text: str, gold_answers: Sequence[str]) -> bool:
    """Whether ``text`` contains a gold answer as whole words, ignoring case."""
    return any(
        truth.strip() and re.search(rf"(?<!\w){re.escape(truth.strip())}(?!\w)", text, re.IGNORECASE)
        for truth in gold_answers
    )
