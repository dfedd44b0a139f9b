"""Lines of ``steps.jsonl``: what happened while one span was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memskill_cli.types import ActionStatus, ExecutorResult, MemoryChange, Step

Row = dict[str, Any]


def step_row(step: Step) -> Row:
    """The line of a step that was read by ``build_memory`` (it has a ``trace``).

    The probability of a skill is the controller's at this step; null if no controller selected it.
    """
    trace, execution = step.trace, step.execution
    assert trace is not None
    chances: Sequence[float | None] = step.selection.probabilities or (None,) * len(trace.skills)
    return {
        "trace_id": trace.trace_id,
        "span": trace.span,
        "skills": [
            {"name": name, "action": action.value, "probability": None if chance is None else round(chance, 6)}
            for (name, action), chance in zip(trace.skills, chances, strict=True)
        ],
        "actions": [_action(change) for change in execution.changes],
        "rejected": _counts(execution.rejected),
        "protected": _counts(execution.protected),
        "memories_before": trace.memories_before,
        "memories_after": trace.memories_after,
        **execution.usage._asdict(),
        "reply": _reply(execution),
    }


def _action(change: MemoryChange) -> Row:
    """``id`` is null for NOOP; ``before`` is there if the action changed, deleted or repeated a text."""
    row = {"action": change.action.value, "id": change.item_id or None, "text": change.text}
    return row | ({"before": change.before} if change.before else {})


def _counts(reasons: Mapping[ActionStatus, int]) -> dict[str, int]:
    return {reason.value: count for reason, count in sorted(reasons.items()) if count}


def _reply(execution: ExecutorResult) -> str:
    if not execution.asked:
        return "not_asked"
    if execution.refused:
        return "refused"
    if execution.unreadable:
        return "unreadable"
    return "cut" if execution.cut else "read"
