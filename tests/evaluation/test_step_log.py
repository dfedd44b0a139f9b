"""``steps.jsonl`` of an evaluation: one line a span, whatever was interrupted or damaged."""

from __future__ import annotations

import json
from pathlib import Path

from memskill_cli.evaluation.step_log import StepLog


def lines(file: Path) -> list[tuple[str, int, str]]:
    return [(row["trace_id"], row["span"], row["v"]) for row in map(json.loads, file.read_text().splitlines())]


def rows(trace_id: str, count: int, version: str) -> list[dict[str, object]]:
    return [{"trace_id": trace_id, "span": span, "v": version} for span in range(count)]


def test_a_trace_that_is_read_again_replaces_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    StepLog(file).write("a", rows("a", 2, "old"))
    log = StepLog(file)
    log.write("b", rows("b", 1, "new"))
    log.write("a", rows("a", 1, "new"))
    log.sort(["a", "b"])
    assert lines(file) == [("a", 0, "new"), ("b", 0, "new")]


def test_lines_that_are_damaged_or_foreign_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(
        '{"trace_id": "a", "span": 1, "v": "x"}\n{"span": 0}\n{"trace_id": 7, "span": 0}\n{"trace_id": "a"}\n[]\n{"tr'
    )
    log = StepLog(file)
    log.write("b", [])
    log.sort(["b", "a"])
    assert lines(file) == [("a", 1, "x")]
