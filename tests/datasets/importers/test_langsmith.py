"""Reading runs of LangSmith: threads, users, what is left out, and damaged runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from memskill_cli.datasets.importers import langsmith as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import document, lines, read, said


def run(number: int, asked: str = "Where is my parcel?", **more: Any) -> dict[str, Any]:
    metadata = more.pop("metadata", {"thread_id": "th-1", "user_id": "u-anna"})
    return {
        "id": f"497f6eca-0000-4000-8000-{number:012}",
        "name": "ChatOpenAI",
        "run_type": "llm",
        "trace_id": f"df570c03-0000-4000-8000-{number:012}",
        "parent_run_id": None,
        "dotted_order": f"20250701T0900{number:02}000000Z497f6eca-0000-4000-8000-{number:012}",
        "start_time": f"2025-07-01T09:{number:02}:00.090000",
        "end_time": f"2025-07-01T09:{number:02}:02.459000",
        "status": "success",
        "error": None,
        "session_id": "1ffd059c-17ea-40a8-8aef-70fd0307db82",
        "extra": {"metadata": metadata},
        "inputs": {"messages": [{"role": "user", "content": asked}]},
        "outputs": {"choices": [{"message": {"role": "assistant", "content": f"Answer {number}."}}]},
        **more,
    }


def test_runs_of_a_thread_are_one_conversation(tmp_path):
    history = [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": "Answer 1."}]
    second = run(2, inputs={"messages": [*history, {"role": "user", "content": "And now?"}]})
    path = lines(tmp_path / "runs.jsonl", [second, run(1), run(3, "Hello", metadata={"conversation_id": "th-2"})])
    assert importer.recognises(head_of(path))
    (first, other), skipped = read(importer, path)
    assert said(first) == [
        ("user", "Where is my parcel?"),
        ("assistant", "Answer 1."),
        ("user", "And now?"),
        ("assistant", "Answer 2."),
    ]
    assert (first.user_id, first.session_id) == ("u-anna", "th-1")
    assert first.messages[0].timestamp == datetime(2025, 7, 1, 9, 1, 0, 90000, UTC)
    assert (other.user_id, other.session_id) == (None, "th-2")
    assert skipped == {"messages that a later call repeats": 2}


def test_fields_that_are_json_as_text_in_a_reply_of_the_api(tmp_path):
    value = {key: json.dumps(field) if isinstance(field, dict) else field for key, field in run(1).items()}
    path = document(tmp_path / "runs.json", {"runs": [value], "cursors": {}})
    assert importer.recognises(head_of(path))
    (found,), _ = read(importer, path)
    assert (found.session_id, len(found.messages)) == ("th-1", 2)


def test_without_metadata_a_trace_is_a_conversation(tmp_path):
    (found,), _ = read(importer, document(tmp_path / "runs.json", [run(1, extra=None)]))
    assert found.session_id == run(1)["trace_id"]


def test_a_root_run_with_messages_stands_for_the_calls_below_it(tmp_path):
    root = run(1, run_type="chain", outputs={"messages": [{"type": "ai", "content": "On its way."}]})
    below = run(2, "Answer politely: Where is my parcel?", trace_id=root["trace_id"], parent_run_id=root["id"])
    (found,), skipped = read(importer, lines(tmp_path / "runs.jsonl", [below, root]))
    assert said(found) == [("user", "Where is my parcel?"), ("assistant", "On its way.")]
    assert skipped == {"model calls below a run with the same messages": 1}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (run(2, error="RateLimitError()", outputs=None), "failed runs"),
        (run(2, run_type="tool", parent_run_id="x"), "runs without messages"),
        (run(2, inputs={"question": "x"}), "runs without messages"),
        (run(2, outputs={"text": "x"}), "runs without messages"),
        (run(1), "repeated runs"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, value, kind):
    (found,), skipped = read(importer, lines(tmp_path / "runs.jsonl", [run(1), value]))
    assert len(found.messages) == 2
    assert skipped == {kind: 1}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": None}, "id is null, expected text"),
        ({"run_type": 3}, "run_type is a whole number, expected text"),
        ({"start_time": "today"}, "start_time 'today' is not a time"),
        (
            {"inputs": {"messages": [{"role": "user", "content": [3]}]}},
            "inputs.messages[0].content[0] is a whole number",
        ),
    ],
)
def test_malformed_runs_are_errors_with_their_place(tmp_path, change, problem):
    with pytest.raises(DataError) as caught:
        read(importer, lines(tmp_path / "runs.jsonl", [run(1), {**run(2, parent_run_id="x"), **change}]))
    assert caught.value.message.startswith(f"runs.jsonl:2: {problem}")
