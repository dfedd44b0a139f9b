"""Files as a crash, a full disk or a person's editor leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.reports import run_files
from memskill_cli.reports.run_files import Files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_torn_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n{"n": 2\n[3]\n\n\xff\xfe\n{"n": 4}\n{"n": ')
    files = Files(tmp_path)
    assert list(files.rows("a.jsonl")) == [{"n": 1}, {"n": 4}]
    assert files.notes == ["a.jsonl: 4 lines cannot be read and are left out"]


def test_what_is_missing_or_damaged_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bad.toml").write_text("a = ")
    files = Files(tmp_path)
    assert list(files.rows("none.jsonl")) == []
    assert [files.table(name) for name in ("none.json", "bad.json", "bad.json", "list.json")] == [{}] * 4
    assert files.settings("bad.toml") == {}
    assert files.notes == [
        "none.jsonl is missing",
        "none.json is missing",
        "bad.json is damaged and cannot be read",
        "list.json is damaged and cannot be read",
        "bad.toml is damaged and cannot be read",
    ]


def test_a_folder_in_a_files_place_is_no_crash(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "config.toml"):
        (tmp_path / name).mkdir()
    files = Files(tmp_path)
    assert (list(files.rows("a.jsonl")), files.table("a.json"), files.settings()) == ([], {}, {})
    assert len(files.notes) == 2


@pytest.mark.parametrize(
    ("value", "number", "count", "words"),
    [
        (3, 3.0, 3, "3"),
        (-2.5, -2.5, 0, "-2.5"),
        (True, None, 0, "true"),
        ("7", None, 0, "7"),
        (None, None, 0, ""),
        (float("nan"), None, 0, "NaN"),
        (10**20, None, 0, "100000000000000000000"),
        ([1], None, 0, ""),
    ],
)
def test_values_of_a_wrong_kind_are_none(value: Any, number: float | None, count: int, words: str) -> None:
    row = {"x": value}
    assert (run_files.number(row, "x"), run_files.count(row, "x"), run_files.get_str(row, "x")) == (
        number,
        count,
        words,
    )


def test_intervals_are_two_numbers_in_order() -> None:
    rows = [[0.1, 0.2], [0.2, 0.1], [0.1], [None, 1], "ab", [float("nan"), 1]]
    assert [run_files.pair({"x": row}, "x") for row in rows] == [(0.1, 0.2), None, None, None, None, None]


@settings(deadline=None)
@given(st.dictionaries(st.just("x"), JSON))
def test_every_accessor_takes_everything(row: dict[str, Any]) -> None:
    assert isinstance(run_files.get_dict(row, "x"), dict)
    assert all(isinstance(item, dict) for item in run_files.get_dicts(row, "x"))
    assert all(isinstance(item, str) for item in run_files.texts(row, "x"))
    assert all(value > 0 for value in run_files.counts(row, "x").values())
    assert run_files.count(row, "x") >= 0
    assert isinstance(run_files.get_str(row, "x"), str)
