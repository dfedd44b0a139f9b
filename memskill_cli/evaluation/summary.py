"""From the rows of an evaluation to its numbers: means with 95 % bootstrap intervals, overall and by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from memskill_cli.datasets.base import ABSTENTION
from memskill_cli.evaluation.results import Row
from memskill_cli.scoring.intervals import bootstrap_ci

SCORES = ("f1", "judge")


def summarise(rows: Sequence[Row], *, resamples: int, seed: int) -> dict[str, Any]:
    """Scores of ``rows``, from 0 to 1. A row without a score counts in no mean.

    Abstention questions are in no mean either: if any were asked, ``abstention`` has their own. ``errors`` counts rows
    by what failed (memory, answer, judge), so that a mean over fewer queries is seen as such. ``cut`` is there when
    something did not fit the answering model's window: of how many queries, and how many tokens of each on average.
    """
    scored = [row for row in rows if row["category"] != ABSTENTION]
    abstained = [row for row in rows if row["category"] == ABSTENTION]
    groups = {name: [row for row in scored if row["category"] == name] for name in _categories(scored)}
    summary = {
        **_numbers(scored, resamples, seed),
        "by_category": {name: _numbers(group, resamples, seed) for name, group in groups.items()},
        "errors": dict(Counter(row["error"].partition(":")[0] for row in rows if row["error"])),
    }
    if abstained:
        summary["abstention"] = _numbers(abstained, resamples, seed)
    if cut := [row["cut"] for row in rows if row.get("cut")]:
        summary["cut"] = {"queries": len(cut), "mean_tokens": round(sum(cut) / len(cut), 1)}
    return summary


def _categories(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["category"] for row in rows))


def _numbers(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    scores = {name: [row[name] for row in rows if row[name] is not None] for name in SCORES}
    return {
        "queries": len(rows),
        **{name: sum(some) / len(some) if some else None for name, some in scores.items()},
        "ci95": {
            name: list(bootstrap_ci(some, resamples=resamples, seed=seed)) if some else None
            for name, some in scores.items()
        },
    }
