"""Notes on the executor's replies in an evaluation, for the console and for report.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memskill_cli.reports.run_files import count, counts, get_dict


def executor_notes(summary: Mapping[str, Any]) -> list[str]:
    """Lines about unreadable and cut replies, and about rejected and changed actions; none if there were none."""
    executor = get_dict(summary, "executor")
    replies = f"of {count(executor, 'replies')} executor replies"
    lines = []
    if unreadable := count(executor, "unreadable"):
        lines.append(f"{unreadable} {replies} could not be read: their spans changed no memory")
    if cut := count(executor, "cut"):
        lines.append(
            f"{cut} {replies} were cut by the token limit, and their last action was rejected; "
            "a higher limit: --set models.executor_max_tokens=N"
        )
    if rejected := counts(executor, "rejected"):
        reasons = ", ".join(f"{number:g} {reason}" for reason, number in sorted(rejected.items()))
        lines.append(f"actions rejected: {reasons}")
    if protected := counts(executor, "protected"):
        rules = ", ".join(f"{number:g} {rule}" for rule, number in sorted(protected.items()))
        lines.append(f"actions changed or refused by memory.protect: {rules}")
    return lines
