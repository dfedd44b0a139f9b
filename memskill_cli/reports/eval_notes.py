"""Notes on an evaluation, for the console and for report.html: the executor's replies, and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memskill_cli.reports.run_files import count, counts, get_dict


def executor_notes(summary: Mapping[str, Any]) -> list[str]:
    """Lines about unreadable and cut replies, and about rejected and changed actions; none if there were none."""
    executor = get_dict(summary, "executor")
    replies = f"of {count(executor, 'replies')} executor replies"
    lines = []
    if refused := count(executor, "refused"):
        lines.append(f"{refused} prompts of the executor were refused by its model: their spans changed no memory")
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


def evidence_notes(summary: Mapping[str, Any]) -> list[str]:
    """Evidence recall and the causes of wrong answers; none if the data name no evidence."""
    recall, failures = counts(summary, "evidence_recall"), counts(summary, "failures")
    lines = []
    if recall:
        shares = ", ".join(f"{100 * share:.1f} % @{k}" for k, share in recall.items())
        lines.append(f"evidence recall (share of the evidence among the first k retrieved): {shares}")
    if wrong := sum(failures.values()):
        causes = ", ".join(f"{number:g} {cause.replace('_', ' ')}" for cause, number in failures.items())
        lines.append(f"{wrong:g} wrong answers, by what first happened to the evidence: {causes}")
    return lines
