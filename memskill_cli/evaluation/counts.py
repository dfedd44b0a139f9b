"""Counts in a summary, in addition to its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from memskill_cli.types import Step


def executor_counts(steps: Sequence[Step]) -> dict[str, Any]:
    """Counts of the executor's replies in ``steps``: all, unreadable, cut by the token limit; rejected actions by
    reason."""
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
