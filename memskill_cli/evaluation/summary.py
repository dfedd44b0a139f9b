"""From the rows of an evaluation to its numbers: means with 95 % bootstrap intervals, overall and by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from memskill_cli.evaluation.asking import ABSTENTION
from memskill_cli.evaluation.rows import Row
from memskill_cli.evaluation.scoring import bootstrap_ci
from memskill_cli.records import Step

SCORES = ("f1", "judge")


def executor_counts(steps: Sequence[Step]) -> dict[str, Any]:
    """What became of the executor's replies to ``steps``: how many came, could not be read, were cut, and which of
    their actions were rejected, by reason."""
    asked = [step.execution for step in steps if step.execution.asked]
    rejected = Counter[str]()
    for execution in asked:
        rejected.update({reason.value: count for reason, count in execution.rejected.items()})
    return {
        "replies": len(asked),
        "unreadable": sum(execution.unreadable for execution in asked),
        "cut": sum(execution.cut for execution in asked),
        "rejected": dict(sorted(rejected.items())),
    }


def add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``total`` with the numbers of ``more`` added, name by name, at any depth."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = add_counts(dict(total.get(name, {})), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


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
