"""Lines of ``results.jsonl``: one query each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memskill_cli.datasets.spans import count_tokens
from memskill_cli.evaluation.methods.base import Memory
from memskill_cli.types import Answer, Retrieved

Row = dict[str, Any]


def row_of(answer: Answer, memory: Memory | None) -> Row:
    """The line of one answer; ``memory`` is what was asked, None if it could not be built."""
    query = answer.query
    brief = memory is not None and memory.brief
    row = {
        "trace_id": query.trace_id,
        "query_id": query.query_id,
        "category": query.category,
        "question": query.question,
        "truths": list(query.truths),
        "prediction": answer.prediction,
        "f1": answer.f1 if query.scored else None,
        "judge": answer.judge,
        "retrieved": _retrieved(answer.retrieved, brief),
        "error": answer.error,
    }
    if memory is not None and memory.cut is not None:
        row["cut"] = memory.cut.get(query.query_id, 0)
    return row


def _retrieved(found: Sequence[Retrieved], brief: bool) -> list[Row]:
    return [
        {
            "id": one.item.item_id,
            "text": f"({count_tokens(one.item.text)} tokens)" if brief else one.item.text,
            "score": round(one.score, 6),
        }
        for one in found
    ]
