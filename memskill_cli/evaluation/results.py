"""Lines of ``results.jsonl``: one line for each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memskill_cli.evaluation.methods.base import MethodMemory
from memskill_cli.types import MemoryItem, Query, QueryResult, Retrieved
from memskill_cli.utils.tokens import count_tokens

Row = dict[str, Any]


def row_of(answer: QueryResult, memory: MethodMemory | None) -> Row:
    """The line of one answer. ``memory`` is None if the memory of the trace could not be built."""
    query = answer.query
    brief = memory is not None and memory.omit_text
    row = {
        "trace_id": query.trace_id,
        "query_id": query.query_id,
        "category": query.category,
        "question": query.question,
        "truths": list(query.gold_answers),
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


def result_of(row: Row) -> QueryResult:
    """The answer that a line describes, with the fields that a reward needs. It has no score if the line has none
    (after an error, or for a query that is not scored)."""
    query = Query(row["query_id"], row["trace_id"], row["category"], row["question"], tuple(row["truths"]))
    found = tuple(
        Retrieved(MemoryItem(str(one.get("id", "")), one["text"], ()), float(one.get("score", 0.0)))
        for one in row["retrieved"]
    )
    return QueryResult(query, row["prediction"], found, row["f1"], row["judge"], row.get("error", ""))
