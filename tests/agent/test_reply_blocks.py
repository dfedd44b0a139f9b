"""Replies in blocks, line by line: what begins an action, what ends a memory, what is only text."""

from __future__ import annotations

import pytest

from memskill_cli.agent.reply_blocks import block_entries
from memskill_cli.agent.reply_entry import Entry

Said = tuple[str, str | None, str | None]


def read(*lines: str, end: str = "\n") -> list[Said]:
    return [(entry.action, entry.index, entry.memory) for entry in block_entries(end.join(lines))]


def insert(memory: str | None) -> list[Said]:
    return [("INSERT", None, memory)]


# --- memories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_memory_goes_on_until_a_blank_line_a_fence_or_a_key(end: str) -> None:
    head = ("ACTION: INSERT", "MEMORY: a", "b")
    assert read(*head, end=end) == insert("a\nb")
    assert read(*head, "", "c", end=end) == insert("a\nb")
    for line in ("```", "~~~", "  ```json"):
        assert read(*head, line, "c", end=end) == insert("a\nb")
    assert read(*head, "REASONING: because", "c", end=end) == insert("a\nb")
    assert read(*head, "ACTION: NOOP", end=end) == [*insert("a\nb"), ("NOOP", None, None)]


def test_a_blank_line_behind_nothing_or_a_heading_ends_no_memory() -> None:
    assert read("ACTION: INSERT", "MEMORY:", "", "a", "", "b") == insert("\n\na")
    assert read("ACTION: INSERT", "MEMORY: The list:", "", "- a", "", "b") == insert("The list:\n\n- a")
    assert read("ACTION: INSERT", "MEMORY: a", "The list: ", "", "- b") == insert("a\nThe list: \n\n- b")
    assert read("ACTION: INSERT", "MEMORY: a: b", "", "c") == insert("a: b")


@pytest.mark.parametrize(
    "line",
    [
        "Her reaction to it: good",
        "Action was taken",
        "ACTION: to be taken soon",
        "Index: of refraction",
        "Content: flour",
        "TEXT: see below",
        "Memory - a novel",
        "Update: he has moved",
        "UPDATE: he has moved",
        "DELETE: the old one",
        "Insert: a coin",
        "Reasoning - a talent",
        "insert",
        "NOOP",
    ],
)
def test_a_line_of_a_memory_that_only_looks_like_a_key_is_text(line: str) -> None:
    assert read("ACTION: INSERT", "MEMORY: a", line, "b") == insert(f"a\n{line}\nb")


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("ACTION: DELETE", ("DELETE", None, None)),
        ("INSERT: b", ("INSERT", None, "b")),
        ("UPDATE 2: b", ("UPDATE", "2", "b")),
        ("DELETE: 3", ("DELETE", "3", None)),
        ("DELETE [3]", ("DELETE", "[3]", None)),
        ("MEMORY: b", ("INSERT", None, "b")),
        ("NEW MEMORY: b", ("INSERT", None, "b")),
    ],
)
def test_a_line_that_is_certain_ends_a_memory(line: str, more: Said) -> None:
    assert read("ACTION: INSERT", "MEMORY: a", line) == [*insert("a"), more]


def test_an_index_within_a_memory_is_one_if_it_is_a_number_or_none() -> None:
    assert read("ACTION: UPDATE", "MEMORY: a", "INDEX: 3") == [("UPDATE", "3", "a")]
    for none in ("none", "NULL", "N/A", "-", ""):
        assert read("ACTION: INSERT", "MEMORY: a", f"INDEX: {none}", "b") == [("INSERT", none, "a")]


# --- fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "MEMORY", "memory", "MEMORY ITEM", "MEMORY_TEXT", "MEMORY-CONTENT", "memorycontent", "NEW_MEMORY",
        "NEW MEMORY ITEM", "CONTENT", "text", "UPDATED MEMORY", "UPDATED_MEMORY_TEXT", "MEMORY 1", "MEMORY #2",
        "> MEMORY", "## MEMORY", "- MEMORY", "2) MEMORY", "(3) MEMORY", "4: MEMORY",
    ],
)  # fmt: skip
def test_a_memory_may_be_called(key: str) -> None:
    assert read("ACTION: INSERT", f"{key}: a") == insert("a")


@pytest.mark.parametrize("sign", [": ", ":", " : ", "：", " = ", "= ", " - ", " – ", " — "])
def test_a_memory_may_be_set_off_by(sign: str) -> None:
    assert read("ACTION: INSERT", f"MEMORY{sign}a") == insert("a")


@pytest.mark.parametrize("key", ["ACTION", "Action", "ACTION_TYPE", "Action Type", "OPERATION", "ACTION 2"])
def test_an_action_may_be_called(key: str) -> None:
    assert read(f"{key}: INSERT", "MEMORY: a") == insert("a")


@pytest.mark.parametrize("key", ["INDEX", "Memory Index", "MEMORY_INDEX", "memory-index", "INDEX 1"])
def test_an_index_may_be_called(key: str) -> None:
    assert read("ACTION: DELETE", f"{key}: 4") == [("DELETE", "4", None)]


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("**MEMORY:** a", "a"),
        ("**MEMORY: a**", "a"),
        ("**MEMORY**: a", "a"),
        ("**MEMORY:** a **b**", "a **b**"),
        ("**MEMORY**: a **b**", "a **b**"),
        ("`MEMORY: a`", "a"),
        ("_MEMORY_: a", "a"),
        ("MEMORY: a**", "a**"),
        ("MEMORY: **a**", "**a**"),
        ("- **MEMORY:** a", "a"),
    ],
)
def test_emphasis_of_a_key_is_no_part_of_its_value(line: str, memory: str) -> None:
    assert read("ACTION: INSERT", line) == insert(memory)


def test_fields_before_any_action_and_reasons_are_left_out() -> None:
    assert read("INDEX: 3", "MEMORY: a", "REASONING: why") == []
    assert read("REASONING: why", "ACTION: INSERT", "REASONING: why", "MEMORY: a", "REASONING: why") == insert("a")
    assert read("ACTION:", "") == []


def test_a_type_may_stand_on_the_next_line_or_alone() -> None:
    assert read("UPDATE 2", "MEMORY: a") == [("UPDATE", "2", "a")]
    assert read("ACTION:", "INSERT", "MEMORY: a") == insert("a")
    assert read("INSERT", "MEMORY: a") == [("INSERT", None, "a")]
    for line in ("**NOOP**", "- `noop`", "[NO-OP].", "> No Op", "(noop)"):
        assert [action.lower() for action, _, _ in read(line)] in (["noop"], ["no-op"], ["no op"])
    assert read("noop and nothing else") == []


def test_content_and_text_are_keys_only_where_a_memory_is_still_to_come() -> None:
    assert read("TEXT: a", "ACTION: INSERT", "TEXT: b", "CONTENT: c") == insert("b\nCONTENT: c")
    assert read("ACTION: INSERT", "MEMORY: a", "", "TEXT: b", "MEMORY = c") == insert("a")


# --- the same field again ----------------------------------------------------------------------------------------


def test_a_second_memory_or_index_is_a_second_action_of_the_type() -> None:
    assert read("ACTION: INSERT", "MEMORY: a", "", "MEMORY: b") == [*insert("a"), *insert("b")]
    assert read("ACTION: UPDATE", "INDEX: 1", "MEMORY: a", "MEMORY: b") == [("UPDATE", "1", "a"), ("UPDATE", "1", "b")]
    assert read("ACTION: DELETE", "INDEX: 1", "INDEX: 2") == [("DELETE", "1", None), ("DELETE", "2", None)]
    pairs = ("INDEX: 1", "MEMORY: a", "INDEX: 2", "MEMORY: b")
    assert read("ACTION: UPDATE", *pairs) == [("UPDATE", "1", "a"), ("UPDATE", "2", "b")]
    assert read("ACTION: INSERT", "INDEX: 1", "INDEX: 2") == [("INSERT", "2", None)]
    assert read("ACTION: NOOP", "MEMORY: a", "MEMORY: b") == [("NOOP", None, "b")]


def test_two_indices_for_one_text_are_kept_as_what_they_are() -> None:
    (entry,) = block_entries("ACTION: UPDATE\nINDEX: 1\nINDEX: 2\nMEMORY: a")
    assert (entry.index, entry.memory, entry.position) == ("1, 2", "a", None)


def test_an_updated_memory_is_what_the_memory_becomes() -> None:
    lines = ("ACTION: UPDATE", "INDEX: 1", "MEMORY: old", "UPDATED MEMORY: new")
    assert read(*lines) == [("UPDATE", "1", "new")]


# --- one line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("INSERT: a", [("INSERT", None, "a")]),
        ("- **INSERT:** a", [("INSERT", None, "a")]),
        ("**INSERT: a**", [("INSERT", None, "a")]),
        ("UPDATE 2: a", [("UPDATE", "2", "a")]),
        ("UPDATE [2]: a", [("UPDATE", "[2]", "a")]),
        ("UPDATE: a", [("UPDATE", None, "a")]),
        ("DELETE: 2", [("DELETE", "2", None)]),
        ("DELETE #2", [("DELETE", "#2", None)]),
        ("DELETE 2:", [("DELETE", "2", None)]),
        ("DELETE: the old one", [("DELETE", "the old one", None)]),
        ("INSERT: a; INSERT: b", [("INSERT", None, "a"), ("INSERT", None, "b")]),
        ("INSERT: a; UPDATE 1: b; DELETE: 2; NOOP", [
            ("INSERT", None, "a"), ("UPDATE", "1", "b"), ("DELETE", "2", None), ("NOOP", None, None),
        ]),
        ("INSERT: a; and b; update: c", [("INSERT", None, "a; and b; update: c")]),
        ("ACTION: INSERT MEMORY: a", [("INSERT", None, "a")]),
        ("- ACTION: INSERT MEMORY: a", [("INSERT", None, "a")]),
        ("ACTION: UPDATE INDEX: 2 MEMORY: a", [("UPDATE", "2", "a")]),
        ("ACTION: UPDATE, INDEX: 2, MEMORY: a, MEMORY: b", [("UPDATE", "2,", "a, MEMORY: b")]),
        ("ACTION: UPDATE | INDEX: 2 | **MEMORY**: a", [("UPDATE", "2 |", "a")]),
        ("ACTION: DELETE; INDEX: 0; ACTION: NOOP", [("DELETE", "0", None), ("NOOP", None, None)]),
        ("action: delete; index: 0; action: noop", [("delete", "0", None), ("noop", None, None)]),
        ("ACTION INSERT", [("INSERT", None, None)]),
        ("- ACTION  DELETE", [("DELETE", None, None)]),
        ("ACTION INSERTED", []),
        ("ACTION: DELETE [3]", [("DELETE [3]", " [3]", None)]),
        ("ACTION: UPDATE 2 (the flat)", [("UPDATE 2 (the flat)", " 2 (the flat)", None)]),
        ("ACTION: DELETE all", [("DELETE all", None, None)]),
        ("ACTION: REMEMBER", [("REMEMBER", None, None)]),
    ],
)  # fmt: skip
def test_actions_on_one_line(line: str, expected: list[Said]) -> None:
    found = read(line)
    strip = [(action.rstrip(" ,;|"), index, memory) for action, index, memory in found]
    assert strip == expected


def test_a_memory_that_begins_on_the_line_of_its_action_goes_on_below() -> None:
    assert read("INSERT: a", "b", "", "c") == insert("a\nb")
    assert read("INSERT: a", "b", "UPDATE 1: c", "d") == [*insert("a\nb"), ("UPDATE", "1", "c\nd")]


def test_a_memory_text_with_semicolons_and_keys_in_it_stays_whole() -> None:
    text = "He said; INSERT: a coin; ACTION was MEMORY: b"
    assert read("ACTION: INSERT", f"MEMORY: {text}") == insert(text)


def test_only_a_complete_field_is_followed_by_another_on_its_line() -> None:
    for text in ("Delete nothing, INDEX: 3", "3, INDEX: 4", "none, TEXT: x"):
        assert read("ACTION: INSERT", f"MEMORY: {text}") == insert(text)
    assert read("ACTION: UPDATE", "INDEX: of all, MEMORY: a") == [("UPDATE", "of all, MEMORY: a", None)]
    assert read("ACTION: to be taken, INDEX: 3") == [("to be taken, INDEX: 3", None, None)]


def test_prose_is_no_action() -> None:
    for line in ("I will insert this.", "Update: I have looked.", "Delete nothing.", "The index is 3.", "INSERT", "*"):
        found = block_entries(line)
        assert found == ([Entry("INSERT")] if line == "INSERT" else [])
