"""Reading observations of Langfuse's export: sessions, users, what is left out, and damaged rows."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from memskill_cli.datasets.importers import langfuse as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import document, lines, read, said


def row(number: int, asked: Any = "Where is my parcel?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    return {
        "id": f"obs-{number}",
        "trace_id": f"trace-{number}",
        "project_id": "p",
        "environment": "production",
        "type": "GENERATION",
        "parent_observation_id": "",
        "start_time": f"2025-07-01 09:{number:02}:19.963000",
        "end_time": f"2025-07-01 09:{number:02}:21.963000",
        "name": "chat",
        "metadata": {},
        "level": "DEFAULT",
        "input": json.dumps(messages),
        "output": json.dumps({"role": "assistant", "content": f"Answer {number}."}),
        "provided_model_name": "gpt-4o",
        "session_id": "s-1",
        "user_id": "u-anna",
        **more,
    }


def test_observations_of_a_session_are_one_conversation(tmp_path):
    path = tmp_path / "observations.jsonl.gz"
    path.write_bytes(gzip.compress(lines(tmp_path / "x", [row(2, "And now?"), row(1)]).read_bytes()))
    assert importer.recognises(head_of(path))
    (found,), skipped = read(importer, path)
    assert said(found) == [
        ("user", "Where is my parcel?"),
        ("assistant", "Answer 1."),
        ("user", "And now?"),
        ("assistant", "Answer 2."),
    ]
    assert (found.user_id, found.session_id) == ("u-anna", "s-1")
    assert found.messages[0].timestamp == datetime(2025, 7, 1, 9, 1, 19, 963000, UTC)
    assert not skipped


def test_plain_text_is_what_the_user_and_the_model_say(tmp_path):
    value = row(1, type="SPAN", input="Where is my parcel?", output="On its way.", session_id="", user_id="")
    (found,), _ = read(importer, document(tmp_path / "x.json", [value]))
    assert said(found) == [("user", "Where is my parcel?"), ("assistant", "On its way.")]
    assert (found.user_id, found.session_id) == (None, "trace-1")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (row(2, level="ERROR"), "failed observations"),
        (row(2, type="TOOL", parent_observation_id="obs-1"), "observations without messages"),
        (row(2, input="", output=""), "observations without messages"),
        (row(2, input='{"query": "x"}'), "observations without messages"),
        (row(1), "repeated observations"),
        (row(2, trace_id="trace-1", parent_observation_id="obs-1"), "model calls below a run with the same messages"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, value, kind):
    (found,), skipped = read(importer, lines(tmp_path / "x.jsonl", [row(1), value]))
    assert len(found.messages) == 2
    assert skipped == {kind: 1}


def test_malformed_rows_are_errors_with_their_place(tmp_path):
    with pytest.raises(DataError, match=r"x.jsonl:1: id is missing"):
        read(importer, lines(tmp_path / "x.jsonl", [{"type": "SPAN"}]))
    with pytest.raises(DataError, match=r"x.jsonl:1: start_time 'x' is not a time"):
        read(importer, lines(tmp_path / "x.jsonl", [row(1, start_time="x")]))
    assert not importer.recognises(head_of(lines(tmp_path / "x.jsonl", [{"id": "x", "trace_id": "y"}])))
