"""The rule-based models: the format of their replies, and their dependence on the prompt."""

from __future__ import annotations

import json
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.testing import rules
from memskill_cli.testing.replies import Request, role_of

SPAN = """[1:56 pm on 8 May, 2023]
Ann: Hey Bob!
Ann: I adopted a beagle called Max from the shelter in Leeds.
Bob: How are you?
Bob: My bakery on Mill Lane opened with 3 ovens."""


def _request(role: str, **parts: str) -> Request:
    body = "\n\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, text in parts.items())
    system = f"You are the {role} of a memory. Mind <span>, <memories> and <question>."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": body}]
    return Request(role_of("", messages), "m", "", messages, {}, "/v1/chat/completions", 0.0, 0)


def _execute(*actions: str, memories: str = "(none)", span: str = SPAN) -> list[str]:
    skills = "\n\n".join(f"### {a}\nAction type: {a.upper()}\nAction: do it well." for a in actions)
    return rules.reply(_request("executor", skills=skills, memories=memories, span=span)).split("\n\n")


def test_the_executor_inserts_what_is_telling_with_its_date():
    assert _execute("insert") == [
        "ACTION: INSERT\nMEMORY: 8 May, 2023 | Bob: My bakery on Mill Lane opened with 3 ovens.",
        "ACTION: INSERT\nMEMORY: 8 May, 2023 | Ann: I adopted a beagle called Max from the shelter in Leeds.",
    ]


def test_the_executor_does_only_what_its_skills_allow():
    memories = "[0] Ann: I adopted a beagle called Max.\n[1] Ann adopted Max."
    assert _execute("noop", memories=memories) == ["ACTION: NOOP"]
    assert _execute("delete", memories=memories) == ["ACTION: DELETE\nINDEX: 1"]
    (update,) = _execute("update", memories=memories)
    assert update.startswith("ACTION: UPDATE\nINDEX: 0\nMEMORY: 8 May, 2023 | Ann: I adopted a beagle")
    kinds = [
        re.match(r"ACTION: (\w+)", block).group(1)
        for block in _execute("insert", "update", "delete", memories=memories)
    ]
    assert sorted(kinds) == ["DELETE", "INSERT", "UPDATE"]


def test_what_is_known_is_not_written_again():
    first = _execute("insert", "update")
    texts = [block.partition("MEMORY: ")[2] for block in first]
    memories = "\n".join(f"[{i}] {text}" for i, text in enumerate(texts))
    assert _execute("insert", "update", "delete", memories=memories) == ["ACTION: NOOP"]


def test_at_most_eight_inserts_and_documents_without_speakers():
    span = "\n".join(f"Document {i}\nThe river Aire{i} is {i}00 km long and flows past Hull{i}." for i in range(20))
    blocks = _execute("insert", span=span)
    assert len(blocks) == 8
    assert all("The river Aire" in block for block in blocks)


MEMORIES = """[0] 8 May, 2023 | Ann: I adopted a beagle called Max from the shelter.
[1] 9 May, 2023 | Bob: My bakery on Mill Lane opened today.
[2] 2 June, 2023 | Ann: I went for a walk with Max."""


def _answer(question: str, memories: str = MEMORIES) -> str:
    return rules.reply(_request("answering model", memories=memories, question=question))


def test_answers_come_from_the_nearest_memory():
    assert _answer("When did Bob's bakery open?") == "9 May, 2023"
    assert "beagle" in _answer("Which dog did Ann adopt from the shelter?")
    assert "Mill Lane" in _answer("Where is the bakery?")
    assert _answer("Who likes chess?") == _answer("When?", "(none)") == "No information available"


@given(st.text(), st.text(), st.text())
def test_answers_are_short_and_always_there(question: str, memory: str, span: str):
    said = _answer(question, f"[0] {memory}")
    assert said.strip()
    assert said == _answer(question, f"[0] {memory}")
    assert all(re.match(r"ACTION: (INSERT\nMEMORY: \S|NOOP$)", block) for block in _execute("insert", span=span))


def test_the_judge_weighs_content_words():
    def score(truth: str, given: str) -> float:
        reply = rules.reply(_request("judge", question="q", truth=truth, answer=given))
        return json.loads(reply)["score"]

    assert score("7 May 2023", "on the 7 May, 2023") == 1
    assert score("a red bicycle", "a bicycle") == 0.5
    assert score("a red bicycle", "a boat") == 0


def test_the_designer_proposes_no_change():
    reply = json.loads(rules.reply(_request("designer", cases="…")))
    assert reply["changes"] == reply["patterns"] == []
    assert reply["summary"]


@given(st.text())
def test_embeddings_have_unit_length(text: str):
    assert math.isclose(sum(x * x for x in rules.embed(text)), 1.0)
