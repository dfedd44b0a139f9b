"""The grammars, read by a small GBNF interpreter of our own: what they let through and what they don't."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.llm.grammars import MAX_CHARS, command_grammar, executor_grammar, judge_grammar
from memskill_cli.types import Action

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{\d+,\d+\}|[()|]|[a-z]+')


def _accepts(grammar: str, text: str) -> bool:
    """Whether ``grammar`` derives ``text``: each rule is rewritten as a regular expression (none is recursive)."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.strip().splitlines())

    def pattern(rule: str) -> str:
        return "(?:" + "".join(map(piece, _TOKEN.findall(rules[rule]))) + ")"

    def piece(token: str) -> str:
        if token[0] == '"':
            return "(?:" + re.escape(token[1:-1].replace(r"\n", "\n").replace(r"\"", '"').replace("\\\\", "\\")) + ")"
        if token[0] == "[":
            inner = token[1:-1]
            return f"[^{inner[1:]}]" if inner[0] == "^" else f"[{inner}]"
        return pattern(token) if token.isalpha() else token.replace("(", "(?:")

    return re.fullmatch(pattern("root"), text) is not None


INSERT = "ACTION: INSERT\nMEMORY: Ann has a dog."
UPDATE = "ACTION: UPDATE\nINDEX: {}\nMEMORY: Ann has two dogs."
DELETE = "ACTION: DELETE\nINDEX: {}"
NOOP = "ACTION: NOOP"
ALL = frozenset(Action)


def test_only_the_chosen_actions():
    one_of_each = {Action.INSERT: INSERT, Action.UPDATE: UPDATE.format(1), Action.DELETE: DELETE.format(0)}
    for chosen in one_of_each:
        grammar = executor_grammar({chosen}, 2)
        assert [action for action, text in one_of_each.items() if _accepts(grammar, text)] == [chosen]
        assert _accepts(grammar, NOOP) == (chosen is not Action.INSERT)


def test_doing_nothing_beside_an_insert_takes_a_skill_for_it():
    assert not _accepts(executor_grammar({Action.INSERT, Action.DELETE}, 2), NOOP)
    assert _accepts(executor_grammar({Action.INSERT, Action.NOOP}, 2), NOOP)


def test_blocks_follow_each_other_up_to_the_limit():
    grammar = executor_grammar(ALL, 3, max_actions=3)
    blocks = [INSERT, UPDATE.format(2), DELETE.format(0), INSERT]
    assert [_accepts(grammar, "\n\n".join(blocks[:n])) for n in range(5)] == [False, True, True, True, False]
    assert not _accepts(grammar, f"{NOOP}\n\n{INSERT}")
    assert not _accepts(grammar, f"Sure!\n\n{INSERT}")


@given(st.integers(0, 25), st.integers(-1, 30))
def test_only_indices_that_exist(memories: int, index: int):
    grammar = executor_grammar(ALL, memories)
    assert _accepts(grammar, DELETE.format(index)) == (0 <= index < memories)
    assert _accepts(grammar, UPDATE.format(index)) == (0 <= index < memories)


@pytest.mark.parametrize("actions", [(), (Action.NOOP,), (Action.UPDATE, Action.DELETE)])
def test_nothing_to_do_leaves_noop(actions: tuple[Action, ...]):
    grammar = executor_grammar(actions, 0)
    assert _accepts(grammar, NOOP)
    assert not any(_accepts(grammar, text) for text in (INSERT, UPDATE.format(0), DELETE.format(0), ""))


def test_a_memory_is_one_line_of_bounded_length():
    grammar = executor_grammar({Action.INSERT}, 0)
    block = "ACTION: INSERT\nMEMORY: "
    assert _accepts(grammar, block + "é" * MAX_CHARS)
    assert not _accepts(grammar, block + "x" * (MAX_CHARS + 1))
    assert not any(_accepts(grammar, block + text) for text in ("", " ", " x", "one\ntwo"))


@given(st.text(), st.sampled_from(["0", "0.5", "1", "2", "10", "NaN"]))
def test_a_verdict_is_json_with_one_of_three_scores(explanation: str, score: str):
    text = f'{{"explanation": {json.dumps(explanation, ensure_ascii=False)}, "score": {score}}}'
    if _accepts(judge_grammar(), text):
        assert json.loads(text)["score"] in (0, 0.5, 1)
    assert not _accepts(judge_grammar(), text.replace("explanation", "reason"))
    assert _accepts(judge_grammar(), f'{{"explanation": "Same \\"day\\".", "score": {score}}}') == (
        score in ("0", "0.5", "1")
    )


def test_a_command_is_one_of_those_that_are_possible():
    commands = ["go to desk 1", 'say "a | b"', "look"]
    grammar = command_grammar(commands)
    assert all(_accepts(grammar, command) for command in commands)
    assert not any(_accepts(grammar, text) for text in ("go to desk 2", "look ", "", "go to desk 1look"))
