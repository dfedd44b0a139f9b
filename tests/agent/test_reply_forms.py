"""Forms of executor replies that the published code understands, one test case each."""

from __future__ import annotations

import pytest

from memskill_cli.agent.parsing import check_actions, parse_reply
from memskill_cli.types import Action, ActionStatus

Said = tuple[str, str, int | None]
INSERT: Said = ("insert", "Ana likes tea", None)
UPDATE: Said = ("update", "Ana likes tea", 0)


def read(text: str) -> list[Said]:
    return [(action.action.value, action.text, action.index) for action in parse_reply(text).actions]


@pytest.mark.parametrize(
    "text",
    [
        "ACTION: INSERT\nNEW_MEMORY: Ana likes tea",
        "ACTION: INSERT\nNEW MEMORY: Ana likes tea",
        "ACTION: INSERT\nCONTENT: Ana likes tea",
        "ACTION: INSERT\nTEXT: Ana likes tea",
        "ACTION: INSERT\nMEMORY_CONTENT: Ana likes tea",
        "ACTION: INSERT\nMEMORY ITEM - Ana likes tea",
        "ACTION: INSERT\nMEMORY = Ana likes tea",
        "ACTION INSERT\nMEMORY: Ana likes tea",
        "**ACTION INSERT**\nMEMORY: Ana likes tea",
        "ACTION = INSERT\nMEMORY: Ana likes tea",
        "ACTION_TYPE: INSERT\nMEMORY_ITEM: Ana likes tea",
        "OPERATION: INSERT\nMEMORY_ITEM: Ana likes tea",
        "- ACTION: INSERT\n- MEMORY: Ana likes tea",
        "- INSERT: Ana likes tea",
        "* **INSERT:** Ana likes tea",
        "1. INSERT: Ana likes tea",
        "INSERT\nMEMORY_ITEM: Ana likes tea",
        "ACTION: INSERT; MEMORY: Ana likes tea",
        "ACTION: INSERT | MEMORY: Ana likes tea",
        '{"action": "INSERT", "new_memory": "Ana likes tea"}',
        '{"action": "INSERT", "content": "Ana likes tea"}',
        '{"operations": [{"type": "INSERT", "text": "Ana likes tea"}]}',
    ],
)
def test_an_insert(text: str) -> None:
    assert read(text) == [INSERT]


@pytest.mark.parametrize(
    "text",
    [
        "ACTION: UPDATE\nINDEX: 0.\nMEMORY: Ana likes tea",
        "ACTION: UPDATE\nINDEX: [0]\nMEMORY: Ana likes tea",
        "ACTION: UPDATE\nMEMORY_INDEX = 0\nUPDATED MEMORY = Ana likes tea",
        "ACTION: UPDATE\nINDEX: 0\nUPDATED MEMORY - Ana likes tea",
        "ACTION UPDATE\nINDEX: 0\nMEMORY: Ana likes tea",
        "UPDATE 0: Ana likes tea",
        "- UPDATE [0]: Ana likes tea",
        "ACTION: UPDATE; INDEX: 0; MEMORY: Ana likes tea",
        "ACTION: UPDATE 0 MEMORY: Ana likes tea",
    ],
)
def test_an_update(text: str) -> None:
    assert read(text) == [UPDATE]


@pytest.mark.parametrize(
    "text",
    ["DELETE: 2", "- DELETE 2", "ACTION DELETE\nINDEX: 2", "ACTION: DELETE; INDEX: 2.", "ACTION: DELETE [2]"],
)
def test_a_delete(text: str) -> None:
    assert read(text) == [("delete", "", 2)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ACTION: INSERT; MEMORY: Ana likes tea; ACTION: DELETE; INDEX: 2", [INSERT, ("delete", "", 2)]),
        ("ACTION: INSERT\nMEMORY: Ana likes tea; ACTION: DELETE\nINDEX: 2", [INSERT, ("delete", "", 2)]),
        ("ACTION: DELETE; INDEX: 0; ACTION: DELETE; INDEX: 1", [("delete", "", 0), ("delete", "", 1)]),
        ("INSERT: Ana likes tea; DELETE: 2", [INSERT, ("delete", "", 2)]),
        (
            "ACTION: INSERT MEMORY: Ana likes tea; ACTION INSERT MEMORY: Bo bakes",
            [INSERT, ("insert", "Bo bakes", None)],
        ),
        ("- INSERT: Ana likes tea\n- DELETE: 2\n- NOOP", [INSERT, ("delete", "", 2)]),
    ],
)
def test_several_actions_on_one_line(text: str, wanted: list[Said]) -> None:
    assert read(text) == wanted


@pytest.mark.parametrize("indices", ["INDEX: 0, 1", "INDEX: 0 and 1", "INDEX: 0\nINDEX: 1", "INDEX: 0; INDEX: 1"])
def test_two_indices_for_one_update_are_an_error_of_that_action_alone(indices: str) -> None:
    reply = parse_reply(f"ACTION: UPDATE\n{indices}\nMEMORY: Bo bakes\n\nACTION: INSERT\nMEMORY: Ana likes tea")
    applied, rejected = check_actions(reply.actions, allowed=set(Action), shown=3, max_chars=99, max_actions=9)
    assert [(action.action.value, action.text) for action in applied] == [("insert", "Ana likes tea")]
    assert rejected == {ActionStatus.BAD_INDEX: 1}


@pytest.mark.parametrize(
    "memory",
    [
        "Ana said: text me; content is king; ACTION movies are fun",
        "The machine says INSERT: coin; DELETE: none",
        "Notes\nTEXT: kept as it is",
        "Options = tea - coffee",
    ],
)
def test_a_memory_text_is_not_cut_at_words_that_look_like_keys(memory: str) -> None:
    assert read(f"ACTION: INSERT\nMEMORY: {memory}") == [("insert", memory, None)]


@pytest.mark.parametrize("text", ["Update: I have looked at the span.", "Insert: nothing", "I DELETE nothing: fine"])
def test_prose_with_a_verb_and_a_colon_is_no_action(text: str) -> None:
    assert not parse_reply(text).found


def test_of_a_reply_that_was_cut_the_last_action_is_rejected() -> None:
    text = "ACTION: INSERT\nMEMORY: Ana likes tea\n\nACTION: DELETE\nINDEX: 1"
    assert [action.action for action in parse_reply(text).actions] == [Action.INSERT, Action.DELETE]
    reply = parse_reply(text, cut=True)
    assert [action.text for action in reply.actions] == ["Ana likes tea"]
    assert (reply.rejected, reply.found) == ({ActionStatus.CUT: 1}, True)
    json = parse_reply('{"actions": [{"action": "INSERT", "memory": "Ana likes tea"}, {"action": "INS', cut=True)
    assert [action.text for action in json.actions] == ["Ana likes tea"]


def test_a_sound_action_in_json_is_not_lost_to_one_with_an_error_after_it() -> None:
    sound, broken = '{"action": "INSERT", "memory": "Ana likes tea"}', '{"action": "DELETE", "index": 2'
    assert read(f"{sound}\n{broken}") == [INSERT, ("delete", "", 2)]
    assert read(f"{broken}}}\n{sound[:-1]}") == [("delete", "", 2), INSERT]
