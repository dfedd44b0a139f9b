"""What became of an executor's replies in an evaluation, in words: for the console and for report.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memskill_cli.reports.run_files import count, counts, inner


def executor_notes(summary: Mapping[str, Any]) -> list[str]:
    """Lines about replies that could not be read, were cut, or had actions rejected; none if all went well."""
    executor = inner(summary, "executor")
    replies = f"of {count(executor, 'replies')} executor replies"
    lines = []
    if unreadable := count(executor, "unreadable"):
        lines.append(f"{unreadable} {replies} could not be read: nothing was written for their spans")
    if cut := count(executor, "cut"):
        lines.append(
            f"{cut} {replies} were cut by the token limit, and their last action was rejected; "
            "a higher limit: --set models.executor_max_tokens=N"
        )
    if rejected := counts(executor, "rejected"):
        told = ", ".join(f"{number:g} {reason}" for reason, number in sorted(rejected.items()))
        lines.append(f"actions rejected: {told}")
    return lines
