"""Replies in JSON: under which keys things are found, small errors, and limits of what is mended."""

from __future__ import annotations

from typing import Any

import pytest

from memskill_cli.agent.reply_entry import Entry
from memskill_cli.agent.reply_json import MAX_OPENINGS, MAX_REPAIRED, json_entries, repair_json, valid_json

X = [Entry("INSERT", None, "x")]


@pytest.mark.parametrize("key", ["action", "Action", " ACTION ", "operation", "action_type", "Action Type", "type"])
def test_the_type_of_an_action_may_be_called(key: str) -> None:
    assert json_entries(f'{{"{key}": "INSERT", "memory": "x"}}') == X


@pytest.mark.parametrize("key", ["actions", "action", "operations", "operation", "ACTIONS"])
def test_several_actions_or_one_may_be_called(key: str) -> None:
    one = '{"action": "INSERT", "memory": "x"}'
    assert json_entries(f'{{"{key}": [{one}, {one}]}}') == X * 2
    assert json_entries(f'{{"{key}": {one}}}') == X


@pytest.mark.parametrize(
    "key",
    [
        "memory", "updated_memory", "new_memory", "memory_item", "memory_text", "memory_content", "text", "content",
        "Memory", "NEW MEMORY", "memory-item",
    ],
)  # fmt: skip
def test_a_memory_may_be_called(key: str) -> None:
    assert json_entries(f'{{"action": "INSERT", "{key}": "x"}}') == X


@pytest.mark.parametrize(
    ("index", "written"),
    [
        ("3", "3"),
        ("3.0", "3"),
        ('"3"', "3"),
        ('"[3]"', "[3]"),
        ("2.5", "2.5"),
        ("true", "True"),
        ("0", "0"),
        ("-1", "-1"),
    ],
)
def test_an_index_is_kept_as_it_is_written_but_for_whole_numbers(index: str, written: str) -> None:
    for key in ("index", "memory_index", "Memory Index"):
        assert json_entries(f'{{"action": "DELETE", "{key}": {index}}}') == [Entry("DELETE", written)]
    assert json_entries('{"action": "DELETE", "index": null, "memory_index": 2}') == [Entry("DELETE", "2")]
    assert json_entries('{"action": "DELETE", "index": null}') == [Entry("DELETE")]


def test_a_memory_that_is_no_text_is_none() -> None:
    assert json_entries('{"action": "INSERT", "memory": 7}') == [Entry("INSERT")]
    assert json_entries('{"action": "INSERT", "memory": null, "text": "x"}') == X


def test_bare_types_in_a_list_are_actions_and_chatter_is_not() -> None:
    assert json_entries('{"actions": ["NOOP", "and so on", 7, {"x": 1}, {"action": "DELETE", "index": 1}]}') == [
        Entry("NOOP"),
        Entry("DELETE", "1"),
    ]
    assert json_entries('{"actions": []}') == []
    assert json_entries('{"type": "summary", "text": "x"}') is None
    assert json_entries('{"type": 7, "text": "x"}') is None


def test_what_holds_no_action_is_none() -> None:
    for text in ("", "x", "[]", "{}", '["x"]', "[1, [2]]", '{"memory": "x"}', '{"action": null}'):
        assert json_entries(text) is None


def test_actions_are_read_wherever_they_stand() -> None:
    one = '{"action": "INSERT", "memory": "x"}'
    for text in (
        f"Well: {one}",
        f"{one}\n{one}",
        f'["x", {one}]',
        f'{{"a": {one}}}',
        f"[[{one}], {one}]",
        f"{{x}} {one}",
    ):
        assert json_entries(text) == X * text.count("INSERT")


def test_lines_of_fences_are_no_part_of_json() -> None:
    assert valid_json('{"actions": [\n```\n{"action": "INSERT", "memory": "x"}\n```\n]}') == (X, "")
    assert valid_json('```json {\n"action": "INSERT", "memory": "x"}\n```') == (X, "")
    assert valid_json('{"action": "INSERT",\n~~~\n"memory": "x"}') == (X, "")


def test_small_errors_are_mended() -> None:
    for text in (
        '[{"action": "INSERT", "memory": "x",}, {"action": "INSERT", "memory": "x",}]',
        '{"operations": [{"type": "INSERT", "text": "x",}, {"type": "INSERT", "text": "x",}]}',
        "[{'action': 'INSERT', 'memory': 'x'}, {'action': 'INSERT', 'memory': 'x'}]",
        '{"actions": [{"action": "INSERT", "memory": "x"}, {"action": "INSERT", "memory": "x"}',
    ):
        assert json_entries(text) == X * 2


def test_chatter_in_the_form_of_json_takes_nothing_away() -> None:
    assert json_entries('{"action": "INSERT", "memory": "x"}\nThe form was {"action": …}') == X


def test_no_more_is_mended_than_takes_little_time() -> None:
    short: dict[str, Any] = {"a": 1}
    assert repair_json('{"a": 1,}'.ljust(MAX_REPAIRED)) == short
    assert repair_json('{"a": 1,}'.ljust(MAX_REPAIRED + 1)) is None
    assert repair_json("[" + "{}," * (MAX_OPENINGS - 1) + "]") == [{}] * (MAX_OPENINGS - 1)
    assert repair_json("[" + "{}," * MAX_OPENINGS + "]") is None
    assert repair_json("[" * (MAX_OPENINGS + 1)) is None
    assert repair_json("{" * (MAX_OPENINGS + 1)) is None


def test_brackets_that_begin_nothing_are_passed_over_up_to_a_limit() -> None:
    one = '{"action": "INSERT", "memory": "x"}'
    assert valid_json(f"[{one} and") == (X, f"[{one} and")
    assert valid_json(f'{{"a: {{"b: {one}') == (X, f'{{"a: {{"b: {one}')
    false = '{"a: '
    assert valid_json(false * MAX_OPENINGS + one)[0] == X
    assert valid_json(false * (MAX_OPENINGS + 1) + one)[0] is None


def test_json_that_nests_too_deep_is_not_read() -> None:
    one = '{"action": "INSERT", "memory": "x"}'
    assert valid_json(one + "[" + '{"a":' * 100_000) == (X, "")
