"""A prepared table is read only if its columns have exactly the types that memskill writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from memskill_cli.datasets.arrow_tables import FILE, PreparedSplit
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_split
from memskill_cli.errors import DataError
from memskill_cli.utils import files

Change = Callable[[pa.Table], pa.Table]


def rewritten(data: Path, change: Change) -> None:
    """Change the test split, with digests to match: what a careful forger leaves."""
    file = data / "locomo/traces/test" / FILE
    with pa.OSFile(str(file)) as source:
        table = change(pa.ipc.open_stream(source).read_all())
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = data / "locomo/manifest.json"
    facts: dict[str, Any] = json.loads(manifest.read_text())
    facts["tables"]["test"] = hashlib.sha256(file.read_bytes()).hexdigest()
    files.write_json(manifest, facts)


def with_image(table: pa.Table) -> pa.Table:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = [{"bytes": None, "path": "http://127.0.0.1:9/x"}] * len(table)
    return table.append_column("x", pa.array(values, kind))


def without_a_value(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    rows[0]["queries"][0]["question"] = None
    return pa.Table.from_pylist(rows, schema=table.schema)


CHANGES: dict[str, Change] = {
    "another column": with_image,
    "a column less": lambda table: table.drop_columns(["queries"]),
    "another order": lambda table: table.select(["queries", "sessions", "trace_id"]),
    "another type": lambda table: table.set_column(0, "trace_id", table["trace_id"].cast(pa.large_string())),
    "a missing value": without_a_value,
    "a missing id": lambda table: table.set_column(0, "trace_id", pa.nulls(len(table), pa.string())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_table_of_another_form_is_refused_by_name(tmp_path: Path, name: str) -> None:
    prepare("locomo", data_dir=tmp_path, sample=True)
    rewritten(tmp_path, CHANGES[name])
    with pytest.raises(DataError, match=r"traces/test: damaged: .*column") as refused:
        load_split("locomo", tmp_path, "test")
    assert "--force" in refused.value.hint


def test_types_in_the_metadata_are_not_used(tmp_path: Path) -> None:
    """They could make a text an image, which is read from an address."""
    prepare("locomo", data_dir=tmp_path, sample=True)
    before = list(load_split("locomo", tmp_path, "test"))
    features = {"trace_id": {"_type": "Image"}, "sessions": {"_type": "Audio"}, "queries": {"_type": "Image"}}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rewritten(tmp_path, lambda table: table.replace_schema_metadata(told))
    assert list(load_split("locomo", tmp_path, "test")) == before


def test_texts_that_are_no_unicode_are_refused_when_the_table_is_opened(tmp_path: Path) -> None:
    prepare("locomo", data_dir=tmp_path, sample=True)
    folder = tmp_path / "locomo/traces/test"
    data = (folder / FILE).read_bytes()
    assert b"sample-5" in data
    (folder / FILE).write_bytes(data.replace(b"sample-5", b"\xff" * 8))
    with pytest.raises(ValueError, match="UTF8"):
        PreparedSplit.open(folder, "locomo", "test")
