"""From the rows of an evaluation to its numbers: means with 95 % bootstrap intervals, overall and by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from memskill_cli.evaluation.scoring import bootstrap_ci

Row = dict[str, Any]


def summarise(rows: Sequence[Row], *, resamples: int, seed: int) -> dict[str, Any]:
    """Scores of ``rows`` in percent of what they can be (0 to 1). A row without a score counts in no mean.

    ``errors`` counts rows by what failed (memory, answer, judge), so that a mean over fewer queries is seen as such.
    """
    categories = list(dict.fromkeys(row["category"] for row in rows))
    return {
        "queries": len(rows),
        **_means(rows),
        "ci95": {name: _interval(rows, name, resamples, seed) for name in ("f1", "judge")},
        "by_category": {
            category: {
                "queries": len(chosen := [row for row in rows if row["category"] == category]),
                **_means(chosen),
                "ci95": {name: _interval(chosen, name, resamples, seed) for name in ("f1", "judge")},
            }
            for category in categories
        },
        "errors": dict(Counter(row["error"].partition(":")[0] for row in rows if row["error"])),
    }


def _scores(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    return {name: sum(s) / len(s) if (s := _scores(rows, name)) else None for name in ("f1", "judge")}


def _interval(rows: Sequence[Row], name: str, resamples: int, seed: int) -> list[float] | None:
    scores = _scores(rows, name)
    return list(bootstrap_ci(scores, resamples=resamples, seed=seed)) if scores else None
