"""A value of a wrong kind in a file that is read back is named with its file, line and field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import RunError
from memskill_cli.evaluation import results
from memskill_cli.evaluation.stored_summary import read_summary
from memskill_cli.training import metrics
from memskill_cli.utils import files
from memskill_cli.utils.rows import COUNT, COUNTS, NUMBER, TEXT, fault, optional, or_null, read_object, read_rows

from ..factories import make_ledger

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WRONG: list[Any] = ["abc", None, [1], {"a": 1}, True, 1e308, -1e300]


@pytest.mark.parametrize("value", WRONG)
def test_the_file_the_line_and_the_field_are_named(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "rows.jsonl"
    for row in ({"n": 1}, {"n": value}):
        files.append_line(file, row)
    with pytest.raises(RunError, match=re.escape(f"{file}:2: n is ") + ".*expected a number"):
        list(read_rows(file, {"n": NUMBER}))


def test_a_line_that_a_crash_left_is_skipped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1}\n{"n": 2\n[3]\n{"n": "x"}\n')
    rows = read_rows(file, {"n": NUMBER})
    assert next(rows) == {"n": 1}
    with pytest.raises(RunError, match=":4: n is"):
        next(rows)


def test_missing_and_null_are_told_apart() -> None:
    assert fault({}, {"n": NUMBER}) == "n is missing, expected a number below 1e15"
    assert fault({}, {"n": or_null(NUMBER)}) is not None
    assert fault({"n": None}, {"n": or_null(NUMBER)}) is None
    assert fault({}, {"n": optional(NUMBER)}) is None
    assert fault({"n": True}, {"n": COUNT}) is not None, "true is no number"
    assert fault({"n": float("nan")}, {"n": NUMBER}) is not None


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "1e999", "", "\x00", '{"a": NaN}'])
def test_what_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(RunError, match=re.escape(str(file))):
        read_object(file, {"a": TEXT})


@given(JSON)
def test_counts_can_be_added(value: Any) -> None:
    if COUNTS.accepts(value) and isinstance(value, dict):
        assert all(isinstance(entry, int | float | dict) for entry in value.values())


LINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "usage": (lambda file: make_ledger(file, scope="s"), {"scope": "s", "role": "answer", "usd": 0.5}),
    "metrics": (
        lambda file: list(read_rows(file, metrics.LINE)),
        {"outer": 0, "inner": 0, "stage": 0, "episode_reward_mean": 0.5, "llm_calls": 1, "cost_usd": 0.0},
    ),
    "results": (
        lambda file: results.read_latest(file),
        {
            **dict.fromkeys(("trace_id", "query_id", "category", "question", "prediction", "error"), ""),
            "truths": ["a"],
            "f1": 0.5,
            "judge": None,
            "retrieved": [{"id": "m", "text": "t", "score": 0.1}],
        },
    ),
}


@pytest.mark.parametrize("name", LINES)
@given(data=st.data())
def test_any_value_in_a_line_is_read_or_named(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    read, row = LINES[name]
    file = tmp_path_factory.mktemp("rows") / f"{name}.jsonl"
    files.append_line(file, row)
    read(file)
    field = data.draw(st.sampled_from(sorted(row)))
    files.append_line(file, {**row, field: data.draw(JSON)})
    refused: list[RunError] = []
    try:
        read(file)
    except RunError as error:
        refused.append(error)
    assert all(error.message.startswith(f"{file}:2: {field} is ") and error.hint for error in refused)


def test_a_good_row_beats_a_later_error_and_a_later_good_row_an_earlier_one(tmp_path: Path) -> None:
    file, row = tmp_path / "results.jsonl", LINES["results"][1]
    for prediction, error in (("early", "answer: no"), ("good", ""), ("late", "judge: no"), ("better", ""), ("", "x")):
        files.append_line(file, {**row, "prediction": prediction, "error": error})
    assert results.read_latest(file)[""]["prediction"] == "better"


def test_rows_of_another_evaluation_are_left_out_and_said(tmp_path: Path) -> None:
    file, row, told = tmp_path / "results.jsonl", LINES["results"][1], list[str]()
    for name in ("mine", "other", "other"):
        files.append_line(file, {**row, "query_id": name, "evaluation": name})
    files.append_line(file, {**row, "query_id": "old"})
    assert results.read_latest(file, "mine", told.append).keys() == {"mine", "old"}
    assert told == [f"{file}: 2 lines are of another evaluation, other: they are left out"]


@pytest.mark.parametrize(
    "change",
    [{"errors": [1]}, {"f1": "x"}, {"ci95": {"f1": [0.1], "judge": None}}, {"by_category": {"a": {}}}, {"queries": -1}],
)
def test_a_summary_of_another_kind_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    scores = {"queries": 1, "f1": 0.5, "judge": None, "ci95": {"f1": [0.1, 0.9], "judge": None}}
    texts = dict.fromkeys(("dataset", "split", "method", "checkpoint"), "x")
    more = {"limit": 0, "max_spans": 0, "memories": 3, "errors": {}, "by_category": {"a": scores}}
    sound = {**texts, **scores, **more}
    file = tmp_path / "summary.json"
    files.write_json(file, sound)
    assert read_summary(file) == sound
    files.write_json(file, {**sound, **change})
    with pytest.raises(RunError, match=re.escape(f"{file}: {next(iter(change))} is ")) as refused:
        read_summary(file)
    assert "made again" in refused.value.hint
