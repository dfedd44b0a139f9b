"""Lines of ``results.jsonl``: one line for each query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memskill_cli.evaluation.methods.base import MethodMemory
from memskill_cli.scoring.evidence import FAILURES, RECALL_AT
from memskill_cli.types import MemoryItem, Query, QueryResult, Retrieved
from memskill_cli.utils.rows import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    Fields,
    Kind,
    check,
    list_of,
    numbered_rows,
    one_of,
    optional,
    or_null,
    with_fields,
)
from memskill_cli.utils.tokens import count_tokens

Row = dict[str, Any]
LINE: Fields = {
    **dict.fromkeys(("trace_id", "query_id", "category", "question", "prediction", "error"), TEXT),
    "truths": list_of(TEXT),
    "f1": or_null(NUMBER),
    "judge": or_null(NUMBER),
    "retrieved": list_of(with_fields({"text": TEXT, "score": optional(NUMBER)})),
    "cut": optional(COUNT),
    "evaluation": TEXT._replace(required=False),
    "evidence": Kind(
        "an object with recall and stage",
        frozenset({dict}),
        with_fields(
            {"recall": with_fields({str(k): NUMBER for k in RECALL_AT}), "stage": one_of((*FAILURES, ""))}
        ).accepts,
        required=False,
    ),
}
"""What is read of a line of ``results.jsonl``."""
TASK_LINE: Fields = {
    **LINE,
    "success": or_null(FLAG),
    **{name: or_null(COUNT) for name in ("steps", "invalid_actions")},
}
"""The same for a task that is played."""


def read_results(file: Path) -> Iterator[Row]:
    """The lines of ``results.jsonl``, checked. Raises RunError, which names the file and the line."""
    for number, row in numbered_rows(file):
        check(row, TASK_LINE if "success" in row else LINE, f"{file}:{number}")
        yield row


def read_latest(file: Path, name: str = "", notice: Callable[[str], None] = lambda text: None) -> dict[str, Row]:
    """The row of each query that counts: the latest without an error; if there is none, the latest.

    With the ``name`` of an evaluation, rows that were written by another one are left out, and ``notice`` is told.
    Rows of older versions do not say which evaluation they are of.
    """
    found: dict[str, Row] = {}
    foreign: Counter[str] = Counter()
    for row in read_results(file):
        if name and row.get("evaluation", name) != name:
            foreign[row["evaluation"]] += 1
            continue
        before = found.get(row["query_id"])
        if before is None or before["error"] or not row["error"]:
            found[row["query_id"]] = row
    for other, number in foreign.items():
        notice(f"{file}: {number} lines are of another evaluation, {other}: they are left out")
    return found


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
