"""Counts in a summary, in addition to its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memskill_cli.types import ActionStatus, Step


def executor_counts(steps: Sequence[Step]) -> dict[str, Any]:
    """Counts of the executor's replies in ``steps``: all, unreadable, cut by the token limit; prompts that were refused
    (if there are some); rejected actions by reason; actions that ``memory.protect`` changed or
    refused, by rule (the refused ones are rejected too)."""
    asked = [step.execution for step in steps if step.execution.asked]
    refused = sum(bool(execution.refused) for execution in asked)
    return {
        "replies": len(asked) - refused,
        **({"refused": refused} if refused else {}),
        "unreadable": sum(execution.unreadable for execution in asked),
        "cut": sum(execution.cut for execution in asked),
        "rejected": _by_name(execution.rejected for execution in asked),
        "protected": _by_name(execution.protected for execution in asked),
    }


def _by_name(counts: Iterable[Mapping[ActionStatus, int]]) -> dict[str, int]:
    """The sums, sorted by name."""
    total = Counter[str]()
    for count in counts:
        total.update({status.value: number for status, number in count.items()})
    return dict(sorted(total.items()))


def add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``total`` with the numbers of ``more`` added, name by name, at any depth."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = add_counts(dict(total.get(name, {})), value)
        else:
            total[name] = total.get(name, 0) + value
    return total
