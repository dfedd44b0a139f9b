"""``steps.jsonl`` of an evaluation: one line for each span that was read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from memskill_cli.evaluation.results import Row
from memskill_cli.utils import files


class StepLog:
    """Every span has at most one line, also if an interrupted evaluation reads a trace again."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, trace_id: str, rows: Sequence[Row]) -> None:
        """Write the lines of a trace, in place of those of an earlier reading that was interrupted.

        The new lines are the ones to keep: the stored memory is that of the last reading.
        """
        if trace_id in self._traces:
            self._replace([row for row in self._rows() if row["trace_id"] != trace_id])
        self._traces.add(trace_id)
        for row in rows:
            files.append_line(self._file, row)

    def sort(self, trace_ids: Sequence[str]) -> None:
        """Put the traces in this order and remove damaged lines. Unknown traces come last."""
        if not self._file.exists():
            return
        places = {trace_id: place for place, trace_id in enumerate(trace_ids)}
        self._replace(sorted(self._rows(), key=lambda row: (places.get(row["trace_id"], len(places)), row["span"])))

    @cached_property
    def _traces(self) -> set[str]:
        return {row["trace_id"] for row in self._rows()}

    def _rows(self) -> list[Row]:
        """The lines that are not damaged."""
        rows = files.read_jsonl(self._file)
        return [row for row in rows if isinstance(row.get("trace_id"), str) and isinstance(row.get("span"), int)]

    def _replace(self, rows: Sequence[Row]) -> None:
        files.write_atomic(self._file, b"".join(map(files.to_json, rows)))
