"""Traces as rows of Arrow tables, written and read in small parts, so that a split is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from memskill_cli.types import Query, Session, Trace, Turn

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset as Table

FILE = "traces.arrow"
"""The table in a split's folder: an Arrow stream."""
BATCH = 16
"""Most rows per write. A trace of LongMemEval is half a megabyte."""
BATCH_CHARS = 4_000_000
"""Characters after which rows are written, so that a few long traces do not fill the memory."""


class TableWriter:
    """Writes the table of one split, trace by trace."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        folder.mkdir(parents=True)
        self._schema = _schema()
        self._file = pa.OSFile(str(folder / FILE), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._chars = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._stream.close()
        finally:
            self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._chars += sum(len(turn["text"]) for session in row["sessions"] for turn in session["turns"])
        if len(self._rows) >= BATCH or self._chars >= BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()
            self._chars = 0


def _schema_of_0_1() -> pa.Schema:
    """The same without the evidence of queries, which version 0.1 did not have."""
    import pyarrow as pa

    schema = _schema()
    query = schema.field("queries").type.value_type
    fields = [field for field in query if field.name != "evidence"]
    return schema.set(schema.get_field_index("queries"), pa.field("queries", pa.list_(pa.struct(fields))))


def _check_table(file: Path) -> None:
    """Raise ValueError if a table has other columns or a value that is missing or damaged. Reads a batch at a time."""
    import pyarrow as pa

    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
        if not any(reader.schema.equals(schema, check_metadata=False) for schema in (_schema(), _schema_of_0_1())):
            raise ValueError("the columns or their types are not those that memskill writes")
        for batch in reader:
            batch.validate(full=True)  # offsets and texts: damaged ones would end the process
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if _has_null([column]):
                    raise ValueError(f"column {name} has a missing value")


def _has_null(arrays: Sequence[pa.Array]) -> bool:
    """Whether a value is missing at any depth."""
    import pyarrow as pa

    for array in arrays:
        if array.null_count:
            return True
        inner = array.flatten() if pa.types.is_struct(array.type) else [array.flatten()] if _is_list(array) else []
        if _has_null(inner):
            return True
    return False


def _is_list(array: pa.Array) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(array.type))


def _schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    turn = pa.struct({"speaker": text, "text": text})
    session = pa.struct({"label": text, "date": text, "turns": pa.list_(turn)})
    query = pa.struct(
        {
            "query_id": text,
            "category": text,
            "question": text,
            "truths": pa.list_(text),
            "date": text,
            "scored": pa.bool_(),
            "evidence": pa.list_(text),
        }
    )
    return pa.schema({"trace_id": text, "sessions": pa.list_(session), "queries": pa.list_(query)})


class PreparedSplit(Sequence[Trace]):
    """The traces of one split, each read from disk on access."""

    def __init__(self, table: Table, dataset: str, split: str) -> None:
        self._table = table
        self.dataset = dataset
        self.split = split

    @classmethod
    def open(cls, folder: Path, dataset: str, split: str) -> PreparedSplit:
        """The table in ``folder``. Raises OSError or ValueError if it is missing or damaged, or has other columns.

        The ``datasets`` library gives columns of some types (images, audio) a meaning: reading them opens files and
        addresses. Such a type can also stand in the file's metadata. So the types must be those of :func:`_schema`,
        and the metadata are not used.
        """
        from datasets import Dataset as Table
        from datasets.table import MemoryMappedTable

        _check_table(folder / FILE)
        found = MemoryMappedTable.from_file(str(folder / FILE))
        return cls(Table(found.replace_schema_metadata(None)), dataset, split)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...
    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._trace(self._table[index])

    def _trace(self, row: dict[str, Any]) -> Trace:
        trace_id = row["trace_id"]
        sessions = tuple(
            Session(s["label"], s["date"], tuple(Turn(t["speaker"], t["text"]) for t in s["turns"]))
            for s in row["sessions"]
        )
        queries = tuple(
            Query(
                q["query_id"],
                trace_id,
                q["category"],
                q["question"],
                tuple(q["truths"]),
                q["date"],
                scored=q["scored"],
                evidence=tuple(q.get("evidence") or ()),  # data prepared by version 0.1 have none
            )
            for q in row["queries"]
        )
        return Trace(trace_id, self.dataset, self.split, sessions, queries)


def to_row(trace: Trace) -> dict[str, Any]:
    """``trace`` as a row of the table. :class:`PreparedSplit` converts rows back to traces."""
    return {
        "trace_id": trace.trace_id,
        "sessions": [
            {"label": s.label, "date": s.date, "turns": [turn._asdict() for turn in s.turns]} for s in trace.sessions
        ],
        "queries": [
            {
                "query_id": q.query_id,
                "category": q.category,
                "question": q.question,
                "truths": list(q.gold_answers),
                "date": q.date,
                "scored": q.scored,
                "evidence": list(q.evidence),
            }
            for q in trace.queries
        ],
    }
