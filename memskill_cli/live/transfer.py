"""A user's data as JSON: all that is stored except vectors, which an import makes anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from memskill_cli.errors import DataError, UsageError
from memskill_cli.live.messages import read_time
from memskill_cli.live.user_file import UserFile, to_json
from memskill_cli.live.user_memory import to_bytes
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.types import Action

FORMAT = 1
_JSON = ("metadata", "skills", "speakers")
"""Columns that are JSON in the file."""
_TABLES: dict[str, dict[str, type]] = {
    "sessions": {"number": int, "session_id": str, "turns": int, "resume": int, "offset": int},
    "turns": {
        "number": int, "session": int, "position": int, "message_id": str, "speaker": str, "text": str, "said": str,
        "metadata": dict, "waits": int,
    },
    "spans": {"number": int, "session": int, "first": int, "last": int, "at": str, "outcome": str},
    "memories": {
        "number": int, "text": str, "created": str, "updated": str, "session_id": str, "metadata": dict, "deleted": int,
    },
    "versions": {
        "memory": int, "position": int, "action": str, "text": str, "at": str, "span": int, "skills": list,
        "date": str, "speakers": list,
    },
    "feedback": {"number": int, "memory": int, "score": float, "at": str},
}  # fmt: skip
_TIMES = ("said", "at", "created", "updated")
_BATCH = 256
Row = dict[str, Any]


class Tables(NamedTuple):
    """A checked export."""

    user_id: str
    rows: dict[str, list[Row]]


Vectors = list[tuple[bytes, bytes]]
"""State and retrieval vector of each memory, in the order of the export."""


def export(file: UserFile, user_id: str) -> Row:
    """All data of a user: ``format``, ``user_id``, and a list of rows for each table."""
    exported: Row = {"format": FORMAT, "user_id": user_id}
    for table, columns in _TABLES.items():
        rows = file.rows(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2")  # noqa: S608 - no text of a user
        exported[table] = [
            {name: orjson.loads(value) if name in _JSON else value for name, value in zip(columns, row, strict=True)}
            for row in rows
        ]
    return exported


def check(data: object) -> Tables:
    """The rows of an export. DataError, naming table, row and field, if it is not what :func:`export` returns."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT or not isinstance(data.get("user_id"), str):
        raise DataError("this is no export of a user", hint="memskill memory export makes one")
    try:
        orjson.dumps(data)
    except TypeError as error:
        raise DataError(f"export: not JSON: {error}") from None
    return Tables(data["user_id"], {table: _check_table(data.get(table), table) for table in _TABLES})


def _check_table(rows: object, table: str) -> list[Row]:
    if not isinstance(rows, list):
        raise DataError(f"export: {table} is no list")
    for number, row in enumerate(rows):
        where = f"export: {table}[{number}]"
        if not isinstance(row, dict) or row.keys() != _TABLES[table].keys():
            raise DataError(f"{where} must have the fields {', '.join(_TABLES[table])}")
        for name, kind in _TABLES[table].items():
            _check_value(row[name], name, kind, f"{where}.{name}")
    return rows


def _check_value(value: object, name: str, kind: type, where: str) -> None:
    valid = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not valid or isinstance(value, bool) or (kind is int and not -(2**62) < value < 2**62):  # type: ignore[operator]
        raise DataError(f"{where} is no {kind.__name__}")
    if kind is list and not all(isinstance(one, str) for one in value):  # type: ignore[attr-defined]
        raise DataError(f"{where} is no list of texts")
    if name == "action" and value not in (Action.INSERT, Action.UPDATE, Action.DELETE):
        raise DataError(f"{where} is no action")
    if name in _TIMES:
        try:
            read_time(value, where)
        except UsageError as error:
            raise DataError(error.message, hint=error.hint) from None


async def encode(tables: Tables, encoders: EncoderPair) -> Vectors:
    """The vectors of all memories of an export."""
    return await vectors_of([row["text"] for row in tables.rows["memories"]], encoders)


async def vectors_of(texts: Sequence[str], encoders: EncoderPair) -> Vectors:
    """The vectors of texts in both spaces, as they are stored."""
    found: Vectors = []
    for first in range(0, len(texts), _BATCH):
        state, retrieval = await encoders.embed(texts[first : first + _BATCH])
        same = encoders.retrieval is encoders.state
        found += [(to_bytes(s), b"" if same else to_bytes(r)) for s, r in zip(state, retrieval, strict=True)]
    return found


def write(file: UserFile, tables: Tables, vectors: Vectors) -> None:
    """Write an export into the file of a user who has nothing yet, in one transaction."""
    columns = {**_TABLES, "memories": {**_TABLES["memories"], "state": bytes, "retrieval": bytes}}
    rows = dict(tables.rows)
    pairs = zip(rows["memories"], vectors, strict=True)
    rows["memories"] = [{**row, "state": state, "retrieval": retrieval} for row, (state, retrieval) in pairs]
    with file.transaction():
        for table, names in columns.items():
            marks = ", ".join("?" * len(names))
            for row in rows[table]:
                values = [to_json(row[name]) if name in _JSON else row[name] for name in names]
                file.run(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)  # noqa: S608
        for what, table in (("memory", "memories"), ("span", "spans")):
            highest = max((row["number"] for row in tables.rows[table]), default=0 if what == "memory" else -1)
            file.set_fact(f"next {what}", str(highest + 1))
