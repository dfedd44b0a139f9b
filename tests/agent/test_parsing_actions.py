"""Actions read in a reply, at the limits of what is read, kept and applied."""

from __future__ import annotations

import pytest

from memskill_cli.agent.parsing import ParsedReply, check_actions, clean_text, parse_reply
from memskill_cli.agent.reply_blocks import MAX_REPLY_CHARS
from memskill_cli.types import Action, ActionStatus, MemoryAction


def read(text: str) -> list[tuple[str, str, int | None]]:
    return [(action.action.value, action.text, action.index) for action in parse_reply(text).actions]


def test_blocks_inside_the_text_of_a_reply_in_json_are_text() -> None:
    said = "She wrote:\nACTION: DELETE\nINDEX: 0"
    for text in (
        f'{{"action": "INSERT", "memory": "{said}"}}',
        f'\n```json\n[{{"action": "INSERT", "memory": "{said}"}}]\n```',
    ):
        assert read(text) == [("insert", said, None)]


def test_json_inside_the_text_of_a_block_is_text() -> None:
    assert read('ACTION: INSERT\nMEMORY: The file has {"action": "DELETE", "index": 0}') == [
        ("insert", 'The file has {"action": "DELETE", "index": 0}', None)
    ]


def test_a_type_that_nobody_knows_is_an_action_that_is_counted() -> None:
    assert parse_reply("ACTION: REMEMBER\nMEMORY: x") == ParsedReply((), {ActionStatus.UNKNOWN_ACTION: 1}, found=True)


def test_without_anything_that_looks_like_an_action_nothing_is_found() -> None:
    for text in ("", "Nothing to do here.", "{}", '{"answer": 1}'):
        found = parse_reply(text)
        assert found == ParsedReply((), {}, found=False)
        assert found.found is False


def test_what_an_action_does_not_need_is_left_out() -> None:
    assert read("ACTION: INSERT\nINDEX: 2\nMEMORY: x") == [("insert", "x", None)]
    assert read("ACTION: DELETE\nINDEX: 2\nMEMORY: x") == [("delete", "", 2)]
    assert read("ACTION: INSERT") == [("insert", "", None)]
    assert read("ACTION: UPDATE\nMEMORY: x") == [("update", "x", None)]


def test_an_endless_reply_is_not_read() -> None:
    head = "ACTION: INSERT\nMEMORY: "
    whole = head + "x" * (MAX_REPLY_CHARS - len(head))
    assert [len(text) for _, text, _ in read(whole)] == [MAX_REPLY_CHARS - len(head)]
    assert parse_reply(whole + "x") == ParsedReply((), {}, found=False)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("'Ana's cat'", "Ana's cat"),
        ("‘Ana’s cat’", "Ana’s cat"),
        ('"A" and "B"', '"A" and "B"'),
        ("  “ Ana ”  ", "Ana"),
        ("\"'Ana'\"", "Ana"),
        ("«»", ""),
        ("«", "«"),
        ('"', ""),
        ("...", ""),
        ("Ana.", "Ana."),
        ("\ud83d Ana", "? Ana"),
    ],
)
def test_texts_are_kept_without_blanks_and_quotes_around_the_whole(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_a_text_may_be_as_long_as_is_allowed() -> None:
    actions = [MemoryAction(Action.INSERT, "x" * length) for length in (9, 10, 11, 12)]
    good, rejected = check_actions(actions, allowed={Action.INSERT}, shown=0, max_chars=10, max_actions=9)
    assert (good, rejected) == (actions[:2], {ActionStatus.TOO_LONG: 2})


def test_each_reason_is_counted() -> None:
    actions = [
        MemoryAction(Action.DELETE, "", 0),
        MemoryAction(Action.UPDATE, "x", 0),
        MemoryAction(Action.DELETE, "", 0),
        MemoryAction(Action.UPDATE, "x", 1),
        MemoryAction(Action.UPDATE, "y", 1),
        MemoryAction(Action.UPDATE, "x", 2),
        MemoryAction(Action.DELETE, "", -1),
        MemoryAction(Action.DELETE, ""),
        MemoryAction(Action.UPDATE, " ", 1),
        MemoryAction(Action.INSERT, "x"),
    ]
    good, rejected = check_actions(
        actions, allowed={Action.UPDATE, Action.DELETE}, shown=2, max_chars=10, max_actions=1
    )
    assert good == actions[:1]
    assert rejected == {
        ActionStatus.DUPLICATE: 3,
        ActionStatus.BAD_INDEX: 3,
        ActionStatus.EMPTY_TEXT: 1,
        ActionStatus.NOT_ALLOWED: 1,
        ActionStatus.TOO_MANY: 1,
    }
