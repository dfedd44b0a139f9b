"""The summary of an evaluation's rows: means with 95 % bootstrap intervals, overall and by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from memskill_cli.datasets.base import ABSTENTION
from memskill_cli.evaluation.results import Row
from memskill_cli.scoring.evidence import FAILURES, RECALL_AT
from memskill_cli.scoring.intervals import bootstrap_ci

SCORES = ("f1", "judge")


def summarise(rows: Sequence[Row], *, resamples: int, seed: int, threshold: float = 0.5) -> dict[str, Any]:
    """Scores of ``rows``, from 0 to 1. Means leave out rows without a score.

    They also leave out abstention questions; if any were asked, ``abstention`` has their scores. ``errors`` counts rows
    by what failed (memory, answer, judge), which shows that a mean is over fewer queries. ``cut`` is present if
    memories or history did not fit the answer model's context window: the number of such queries and the mean number of
    tokens that were cut.
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
    return summary | _evidence(scored, threshold)


def _evidence(rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    """Mean evidence recall of the rows that name evidence, and why the wrong answers failed; {} if none names any.

    An answer is wrong if its judge score is below 1; without a judge score, if its F1 is below ``threshold``.
    """
    known = [row for row in rows if "evidence" in row]
    if not known:
        return {}
    recall = {str(k): sum(row["evidence"]["recall"][str(k)] for row in known) / len(known) for k in RECALL_AT}
    failures = dict.fromkeys((*FAILURES, "no_evidence"), 0)
    for row in rows:
        if row["f1"] is not None and (row["judge"] < 1 if row["judge"] is not None else row["f1"] < threshold):
            failures[row["evidence"]["stage"] if "evidence" in row else "no_evidence"] += 1
    return {"evidence_recall": recall, "failures": failures}


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
