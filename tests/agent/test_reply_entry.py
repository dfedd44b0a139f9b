"""One action as a model wrote it: its type and its index, in any case and dress."""

from __future__ import annotations

import pytest

from memskill_cli.agent.reply_entry import Entry, read_verb
from memskill_cli.types import Action


@pytest.mark.parametrize(
    ("written", "position"),
    [
        ("3", 3),
        (" [3] ", 3),
        ("#3", 3),
        ("3.", 3),
        ("memory 3", 3),
        ("MEMORY 3", 3),
        ("Index: 12", 12),
        ("ITEM [4]", 4),
        ("-1", -1),
        ("3 (the flat)", 3),
        ("3 (the\nflat)", 3),
        ("3: the\nflat", 3),
        ("", None),
        ("none", None),
        ("three", None),
        ("3 or 4", None),
        ("0, 1", None),
        ("1234567890", None),
    ],
)
def test_an_index_is_a_number_in_any_dress(written: str, position: int | None) -> None:
    assert Entry("UPDATE", written).position == position


def test_without_an_index_there_is_no_place() -> None:
    assert Entry("UPDATE").position is None


@pytest.mark.parametrize("text", ["insert", "INSERT", "**Insert**", "`insert`", '"insert"', "[INSERT]", " <insert>"])
def test_a_type_is_read_in_any_dress(text: str) -> None:
    assert read_verb(text) is Action.INSERT
    assert Entry(text).verb is Action.INSERT


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("UPDATE [2]", Action.UPDATE),
        ("delete", Action.DELETE),
        ("NOOP", Action.NOOP),
        ("no-op", Action.NOOP),
        ("No Op", Action.NOOP),
        ("skip", Action.NOOP),
        ("NONE", Action.NOOP),
        ("INSERT | UPDATE", None),
        ("insert or update", None),
        ("INSERT OR DELETE", None),
        ("Update/Noop", None),
        ("update, delete", None),
        ("inserted", None),
        ("insert-only", None),
        ("upsert", None),
        ("", None),
    ],
)
def test_each_type_and_no_choice_that_was_not_made(text: str, verb: Action | None) -> None:
    assert read_verb(text) is verb
