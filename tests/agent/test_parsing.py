"""What an executor's reply is understood to say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.agent.parsing import check_actions, clean_text, parse_reply
from memskill_cli.types import Action, ActionStatus, MemoryAction


def insert(text):
    return MemoryAction(Action.INSERT, text)


def update(index, text):
    return MemoryAction(Action.UPDATE, text, index)


def delete(index):
    return MemoryAction(Action.DELETE, index=index)


NOOP = MemoryAction(Action.NOOP)
EXAMPLE = (insert("Ana has a cat called Miso."), update(2, "Bo works at a bakery."), delete(0))


FORMS = {
    "contract": """ACTION: INSERT
MEMORY: Ana has a cat called Miso.

ACTION: UPDATE
INDEX: 2
MEMORY: Bo works at a bakery.

ACTION: DELETE
INDEX: 0""",
    "other key names": """ACTION: INSERT
MEMORY_ITEM: Ana has a cat called Miso.

ACTION: UPDATE
MEMORY_INDEX: 2
UPDATED_MEMORY: Bo works at a bakery.

ACTION: DELETE
Memory Index: 0""",
    "any case, dashes, no blank lines": """Action - insert
memory: Ana has a cat called Miso.
Action - Update
index: 2
Memory: Bo works at a bakery.
action: Delete
index: [0]""",
    "markdown": """Here is what I would do:

1. **ACTION:** INSERT
   **MEMORY:** Ana has a cat called Miso.

2. **ACTION**: UPDATE
   **INDEX**: 2
   **MEMORY: Bo works at a bakery.**

- `ACTION: DELETE`
- `INDEX: 0.`

I hope that this helps! The action was chosen with care.""",
    "fenced, quoted": """Sure!
```text
ACTION: INSERT
MEMORY: "Ana has a cat called Miso."

ACTION: UPDATE
INDEX: #2
MEMORY: “Bo works at a bakery.”

ACTION: DELETE
INDEX: 0 (the flat)
```
These are all the actions.""",
    "one line each": """ACTION: INSERT MEMORY: Ana has a cat called Miso.
ACTION: UPDATE, INDEX: 2, MEMORY: Bo works at a bakery.
ACTION: DELETE 0""",
    "type on its own line, headings": """### ACTION 1:
INSERT
MEMORY:

Ana has a cat called Miso.

### ACTION 2: UPDATE
REASONING: he changed jobs
INDEX: 2
MEMORY: Bo works at a bakery.

### ACTION 3: DELETE
INDEX: memory 0""",
    "windows line ends": "ACTION: INSERT\r\nMEMORY: Ana has a cat called Miso.\r\n\r\nACTION: UPDATE\r\nINDEX: 2\r\n"
    "MEMORY: Bo works at a bakery.\r\n\r\nACTION: DELETE\r\nINDEX: 0\r\n",
    "json": """{"actions": [{"action": "INSERT", "memory": "Ana has a cat called Miso."},
{"action": "update", "index": 2, "memory": "Bo works at a bakery."}, {"action": "delete", "index": "0"}]}""",
    "json in a fence, with errors": """Here you are [as asked]:
```json
{'actions': [{"action": "insert", "memory": "Ana has a cat called Miso.",},
  {"action": "update", "memory_index": 2.0, "updated_memory": "Bo works at a bakery."}
  {"action": "delete", "index": [0]}
```
Done.""",
    "json list": """[{"Action": "insert", "Memory Item": "Ana has a cat called Miso."},
{"action": "update", "index": 2, "memory": "Bo works at a bakery."}, {"action": "delete", "index": 0}]""",
    "json lines": """{"action": "insert", "memory": "Ana has a cat called Miso."}
{"action": "update", "index": 2, "memory": "Bo works at a bakery."}
{"action": "delete", "index": 0}""",
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
def test_the_same_actions_in_every_form(reply):
    parsed = parse_reply(reply)
    assert parsed.actions == EXAMPLE
    assert parsed.rejected == {}
    assert parsed.found


@pytest.mark.parametrize(
    "memory",
    [
        "Her reaction to the offer was joy; the action: accept. Reasoning: more pay.",
        "Ana's plan of action\nhas two parts:\n- memory training\n- an index of books: A to Z",
        "To do\nAction: call the dentist\nIndex: Dow Jones up 3 %",
        'Ana said "no" and then "yes"',
        '"Dune" is the book that Bo likes; Ana likes "Emma"',
        "**Ana** likes *tea*",
        "Bo asked what <think> does, and </think> too",
        "Ana's list:\n\nmilk, eggs",
        "{braces} and [brackets] and \\backslash",
    ],
)
def test_a_memory_text_stays_whole(memory):
    reply = f"ACTION: INSERT\nMEMORY: {memory}\n\nACTION: DELETE\nINDEX: 1"
    assert parse_reply(reply).actions == (insert(memory), delete(1))


def test_what_is_said_after_a_block_is_not_remembered():
    reply = "ACTION: INSERT\nMEMORY: Ana\nlikes tea.\n\nShall I store more?\n\nACTION: DELETE\nINDEX: 1\n\nBye."
    assert parse_reply(reply).actions == (insert("Ana\nlikes tea."), delete(1))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("ACTION: DELETE\nINDEX: -1", -1),
        ("ACTION: DELETE\nINDEX -1", None),
        ("ACTION: DELETE\nINDEX - -1", -1),
        ("ACTION: DELETE\nINDEX: −1", None),
        ("ACTION: DELETE -1", -1),
        ("ACTION: DELETE\nINDEX: 1.5", None),
        ("ACTION: DELETE\nINDEX: 1, 2", None),
        ("ACTION: DELETE\nINDEX: the first", None),
        ("ACTION: DELETE\nINDEX:", None),
        ("ACTION: DELETE\nINDEX: " + "9" * 6000, None),
        ("ACTION: DELETE", None),
        ('{"action": "delete", "index": -1}', -1),
        ('{"action": "delete", "index": true}', None),
        ('{"action": "delete", "index": 1e400}', None),
        ('{"action": "delete", "index": null}', None),
    ],
)
def test_an_index_that_is_none_is_never_taken_for_another(reply, expected):
    parsed = parse_reply(reply)
    assert parsed.actions == (MemoryAction(Action.DELETE, index=expected),)
    applied, rejected = check_actions(parsed.actions, allowed=set(Action), shown=9, max_chars=99, max_actions=9)
    assert (applied, rejected) == ([], {ActionStatus.BAD_INDEX: 1})


@pytest.mark.parametrize(
    "reply", ["ACTION: NOOP", "noop", "**NOOP**", "Action: no-op", '{"actions": [{"action": "NOOP"}]}']
)
def test_noop_alone_is_a_reply(reply):
    parsed = parse_reply(reply)
    assert (parsed.actions, parsed.found) == ((NOOP,), True)


def test_noop_beside_others_says_nothing():
    assert parse_reply("ACTION: NOOP\n\nACTION: INSERT\nMEMORY: Ana likes tea.").actions == (insert("Ana likes tea."),)
    assert parse_reply("ACTION: NOOP\n\nACTION: NOOP").actions == (NOOP,)


def test_an_empty_list_of_actions_is_a_reply_and_chatter_is_not():
    assert parse_reply('{"actions": []}').found
    for text in (
        "",
        "Nothing here is worth an action.",
        "I would insert a memory: Ana likes tea",
        '{"memory": "x"}',
        "[1]",
    ):
        assert not parse_reply(text).found


def test_unknown_actions_are_counted_and_take_their_text_with_them():
    parsed = parse_reply(
        "ACTION: MERGE\nINDEX: 1\nMEMORY: x\n\nACTION: INSERT | UPDATE\nMEMORY: y\n\nACTION: DELETE\nINDEX: 1"
    )
    assert parsed.actions == (delete(1),)
    assert parsed.rejected == {ActionStatus.UNKNOWN_ACTION: 2}


def test_a_key_for_the_second_time_is_another_action():
    assert parse_reply("ACTION: INSERT\nMEMORY: a\nMEMORY: b").actions == (insert("a"), insert("b"))
    assert parse_reply("ACTION: DELETE\nINDEX: 1\nINDEX: 2").actions == (delete(1), delete(2))
    assert parse_reply("ACTION: UPDATE\nINDEX: 1\nMEMORY: old\nUPDATED_MEMORY: new").actions == (update(1, "new"),)


def test_a_reply_cut_off_in_json_keeps_the_actions_before_the_cut():
    parsed = parse_reply('{"actions": [{"action": "insert", "memory": "a"}, {"action": "delete", "index": 1}, {"act')
    assert parsed.actions[:2] == (insert("a"), delete(1))


def test_only_punctuation_is_no_text():
    for text in (":", ' "" ', "…".replace("…", "..."), "**", ""):
        assert clean_text(text) == ""
    parsed = parse_reply("ACTION: INSERT\nMEMORY: :\n")
    assert check_actions(parsed.actions, allowed=[Action.INSERT], shown=0, max_chars=9, max_actions=9) == (
        [],
        {ActionStatus.EMPTY_TEXT: 1},
    )


# --- rules -------------------------------------------------------------------------------------------------------


def check(*actions, allowed=tuple(Action), shown=3, max_chars=100, max_actions=32):
    return check_actions(actions, allowed=allowed, shown=shown, max_chars=max_chars, max_actions=max_actions)


def test_every_fault_has_its_reason_and_the_rest_applies():
    applied, rejected = check(
        insert("good"),
        insert(" "),
        insert("x" * 101),
        update(3, "out of range"),
        delete(None),
        update(1, ""),
        delete(0),
    )
    assert applied == [insert("good"), delete(0)]
    assert rejected == {ActionStatus.EMPTY_TEXT: 2, ActionStatus.TOO_LONG: 1, ActionStatus.BAD_INDEX: 2}


def test_only_what_the_chosen_skills_allow():
    applied, rejected = check(insert("a"), update(0, "b"), delete(1), allowed=[Action.UPDATE])
    assert (applied, rejected) == ([update(0, "b")], {ActionStatus.NOT_ALLOWED: 2})


def test_an_index_is_changed_once_and_delete_beats_update():
    applied, rejected = check(update(0, "x"), delete(0), delete(0), update(1, "first"), update(1, "second"), delete(2))
    assert applied == [delete(0), update(1, "first"), delete(2)]
    assert rejected == {ActionStatus.DUPLICATE: 3}


def test_a_delete_that_is_not_allowed_beats_nothing():
    applied, rejected = check(update(0, "x"), delete(0), allowed=[Action.UPDATE])
    assert (applied, rejected) == ([update(0, "x")], {ActionStatus.NOT_ALLOWED: 1})


def test_no_more_than_so_many_actions():
    applied, rejected = check(insert(""), *(insert(str(i)) for i in range(5)), max_actions=3)
    assert applied == [insert("0"), insert("1"), insert("2")]
    assert rejected == {ActionStatus.EMPTY_TEXT: 1, ActionStatus.TOO_MANY: 2}


def test_noop_needs_no_leave():
    assert check(NOOP) == ([NOOP], {})
    assert check(NOOP, allowed=[Action.INSERT]) == ([NOOP], {})


# --- anything at all ---------------------------------------------------------------------------------------------

_PIECES = [
    "ACTION:", "ACTION", "INDEX: 1", "MEMORY:", "MEMORY_INDEX", "UPDATED MEMORY:", "INSERT", "update", "delete", "NOOP",
    "<think>", "</think>", "```", "```json\n", "\n", "\n\n", " ", ":", "-", "**", '"', "'", "{", "}", "[", "]", ",",
    '{"actions": [', '{"action": "insert", "memory": "', '"index": ', "\\", "\x00", "\ud800", "é🙂", "1", "NaN",
]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(_PIECES), max_size=60).map("".join)))
def test_it_never_raises_and_its_counts_agree(text):
    parsed = parse_reply(text)
    applied, rejected = check_actions(parsed.actions, allowed=set(Action), shown=2, max_chars=50, max_actions=3)
    assert len(applied) + sum(rejected.values()) == len(parsed.actions)
    assert parsed.found or not (parsed.actions or parsed.rejected)
    assert all(action.text == action.text.strip() for action in applied)


_WORDS = st.from_regex(r"[A-Za-z][A-Za-z ,.'!:0-9-]{0,60}[a-z.]", fullmatch=True)
_ACTIONS = st.one_of(
    _WORDS.map(insert),
    st.builds(update, st.integers(0, 99), _WORDS),
    st.integers(0, 99).map(delete),
)
_JUNK = st.one_of(
    st.sampled_from(["", "```", "---", "Now the next one, an insert action:", "MEMORY: stray", "(no comment)", "1."]),
    st.text("abc xyz.,!?{}[]()*#-_:;'\"\n", max_size=80),
).map(lambda text: f"\n\n{text}\n\n")


def as_block(action):
    lines = [f"ACTION: {action.action.upper()}"]
    lines += [f"INDEX: {action.index}"] if action.index is not None else []
    return "\n".join(lines + ([f"MEMORY: {action.text}"] if action.text else []))


@given(st.lists(st.tuples(_JUNK, _ACTIONS), min_size=1, max_size=6), _JUNK)
def test_good_blocks_survive_whatever_is_between_them(parts, end):
    reply = "".join(junk + as_block(action) for junk, action in parts) + end
    expected = [action for _, action in parts]
    assert [action for action in parse_reply(reply).actions if action.text != "stray"] == expected


@given(st.lists(_ACTIONS, min_size=1, max_size=6), st.sampled_from(["", "Here it is: [done] ", "```json\n"]))
def test_json_says_the_same_as_blocks(actions, before):
    import orjson

    entries = [{"action": a.action, "index": a.index, "memory": a.text or None} for a in actions]
    reply = before + orjson.dumps({"actions": entries}).decode()
    assert list(parse_reply(reply).actions) == actions
