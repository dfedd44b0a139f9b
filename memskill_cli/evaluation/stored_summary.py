"""Read ``summary.json`` of an evaluation. It is checked, because tables and reports compute with its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memskill_cli.evaluation.summary import SCORES
from memskill_cli.utils.rows import (
    COUNT,
    COUNTS,
    FLAG,
    NUMBER,
    TEXT,
    Fields,
    list_of,
    optional,
    or_null,
    read_object,
    table_of,
    with_fields,
)

HINT = "delete summary.json, then run the same evaluation again: it is made again from results.jsonl, without a call"
_INTERVAL = or_null(list_of(NUMBER)._replace(what="two numbers"))
_PAIR = _INTERVAL._replace(fits=lambda ends: len(ends) == 2 and all(map(NUMBER.accepts, ends)))


def _scores(names: tuple[str, ...]) -> Fields:
    """The fields of a group of queries: its size, and the mean and the interval of each score."""
    intervals = with_fields(dict.fromkeys(names, _PAIR))
    return {"queries": COUNT, **dict.fromkeys(names, or_null(NUMBER)), "ci95": intervals}


_ANSWERED = _scores(SCORES)
_PLAYED = {**_scores(("success_rate", "steps")), "invalid_actions": COUNT}
_ALL: Fields = {
    **dict.fromkeys(("dataset", "split", "method", "checkpoint"), TEXT),
    **dict.fromkeys(("variant", "run", "id", "config_digest", "prompts", "data_digest"), optional(TEXT)),
    **dict.fromkeys(("limit", "max_spans"), COUNT),
    "include_abstention": optional(FLAG),
    "memories": NUMBER,
    "seconds": optional(NUMBER),
    "errors": table_of(COUNT),
    "usage": optional(table_of(NUMBER)),
    **dict.fromkeys(("evidence_recall", "failures"), optional(table_of(NUMBER))),
    "executor": optional(table_of(COUNTS)),
    "cut": optional(with_fields({"queries": COUNT, "mean_tokens": NUMBER})),
    "abstention": optional(with_fields(_ANSWERED)),
}
_OF_QUESTIONS: Fields = {**_ALL, **_ANSWERED, "by_category": table_of(with_fields(_ANSWERED))}
_OF_TASKS: Fields = {**_ALL, **_PLAYED, "by_task_type": table_of(with_fields(_PLAYED))}


def read_summary(file: Path) -> dict[str, Any]:
    """The summary in ``file``. Raises RunError, which names the file and the first unsound field."""
    played = "by_task_type" in read_object(file, {}, HINT)
    return read_object(file, _OF_TASKS if played else _OF_QUESTIONS, HINT)
