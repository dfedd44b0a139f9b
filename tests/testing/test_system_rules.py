"""The rule-made executor in the forms of Mem0 and LangMem: what is new is added, what is known is not."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.testing import rules
from memskill_cli.testing.replies import Request, role_of

SAID = "Ann: I adopted a beagle called Max from the shelter in Leeds."
SHORT = "Ann: I adopted a beagle called Max."


def _reply(*messages: tuple[str, str]) -> Any:
    asked = [{"role": role, "content": text} for role, text in messages]
    role = role_of("m", asked)
    assert role == "executor"
    return json.loads(rules.reply(Request(role, "m", "", asked, {}, "/v1/chat/completions", 0.0, 0)))


def _changes(old: list[str], new: list[str]) -> list[dict[str, str]]:
    listed = [{"id": str(i), "text": text} for i, text in enumerate(old)]
    prompt = f"You are a smart memory manager which …\n```\n{listed}\n```\nfacts:\n```\n{new}\n```\n"
    return _reply(("user", prompt))["memory"]


def _calls(existing: str, span: str) -> list[dict[str, Any]]:
    shown = f'<instance id=ab12 schema_type="Memory">\n{ {"content": existing} }\n</instance>' if existing else ""
    session = f"<session_1>\n==== Human Message ====\n\n{span}\n</session_1>"
    return _reply(("system", f"You act by calling functions. …\n{shown}"), ("user", session))["calls"]


def test_facts_are_the_telling_lines_without_their_date() -> None:
    span = f"Input:\nuser: [8 May, 2023]\n{SAID}\nBob: How are you?\n"
    asked = ("system", "You are a Personal Information Organizer, who …"), ("user", span)
    assert _reply(*asked) == {"facts": [SAID]}


def test_a_fact_is_added_updates_or_changes_nothing() -> None:
    kept = {"id": "0", "text": SHORT, "event": "NONE"}
    other = "Bob: My bakery has 3 ovens."
    assert _changes([], [SAID]) == [{"id": "0", "text": SAID, "event": "ADD"}]
    assert _changes([SHORT], [other]) == [kept, {"id": "1", "text": other, "event": "ADD"}]
    assert _changes([SHORT], [SHORT]) == [kept]
    assert _changes([SHORT, SAID], [SAID])[1]["event"] == "NONE"
    (update,) = _changes(["Ann: I adopted a beagle called Max, from Leeds."], [SAID])
    assert (update["id"], update["text"], update["event"]) == ("0", SAID, "UPDATE")


def test_calls_add_patch_or_do_nothing() -> None:
    dated = f"8 May, 2023 | {SAID}"
    span = f"[8 May, 2023]\n{SAID}\nBob: How are you?"
    assert _calls("", span) == [{"name": "Memory", "arguments": {"content": dated}}]
    assert _calls(dated, span) == []
    (call,) = _calls("Ann: I adopted a beagle called Max, from Leeds.", span)
    assert call["name"] == "PatchDoc"
    assert call["arguments"]["json_doc_id"] == "ab12"
    assert call["arguments"]["patches"] == [{"op": "replace", "path": "/content", "value": dated}]


@given(st.lists(st.text()), st.lists(st.text()))
def test_any_memories_and_facts_can_be_judged(old: list[str], new: list[str]) -> None:
    entries = _changes(old, new)
    assert [entry["text"] for entry in entries if entry["event"] == "NONE"][: len(old)] == [
        text for text, entry in zip(old, entries, strict=False) if entry["event"] == "NONE"
    ]
    assert len(entries) <= len(old) + len(new)
