"""LangMem, in addition to the tests of all systems: its tool calls as text, its changes and its repairs."""

from __future__ import annotations

import json
import re
from importlib import util
from typing import Any

import pytest

from memskill_cli.testing.server import Request
from memskill_cli.types import Span

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(util.find_spec("langmem") is None, reason="memskill[langmem] not installed"),
]
SPANS = [Span("t", i, f"[{i + 1} May 2023]\nAna: My bicycle is colour number {i}.") for i in range(3)]
QUESTION = "Which colour is the bicycle?"


def calls(*made: tuple[str, dict[str, Any]]) -> str:
    return json.dumps({"calls": [{"name": name, "arguments": arguments} for name, arguments in made]})


def memory(text: str) -> tuple[str, dict[str, Any]]:
    return "Memory", {"content": text}


def patch(request: Request, *edits: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    shown = re.search(r"<instance id=(\w+)", request.text)
    assert shown
    return "PatchDoc", {"json_doc_id": shown[1], "planned_edits": "as said", "patches": list(edits)}


def test_calls_add_and_patch_memories(rig: Any) -> None:
    def reply(request: Request) -> str:
        if request.index == 0:
            return calls(memory("The bicycle is red"))
        newer = {"op": "replace", "path": "/content", "value": "The bicycle is green"}
        return calls(patch(request, newer), memory("Ana has a bell"))

    size, found, _ = rig.remember("langmem", SPANS[:2], QUESTION, reply)
    assert size == 2
    assert [(item.item.item_id, item.item.text) for item in found] == [
        ("m000001", "The bicycle is green"),
        ("m000002", "Ana has a bell"),
    ]


def test_the_model_is_told_its_functions_and_what_is_remembered(rig: Any) -> None:
    rig.remember("langmem", SPANS[:2], QUESTION, calls(memory("The bicycle is red")))
    first, second = rig.requests
    for request in (first, second):
        assert [message["role"] for message in request.messages] == ["system", "user"]
        assert SPANS[request.index].text in request.messages[1]["content"]
    assert "- Memory: " in first.messages[0]["content"]
    assert "PatchDoc" not in first.text
    assert "- PatchDoc: " in second.messages[0]["content"]
    assert "The bicycle is red" in second.messages[0]["content"]


def test_nothing_in_a_prompt_is_drawn_at_random(rig: Any) -> None:
    prompts = []
    for _ in range(2):
        rig.remember("langmem", SPANS, QUESTION, lambda request: calls(memory(f"Note {request.index}")))
        prompts.append([request.text for request in rig.requests])
        for folder in ("cache", "memory"):
            (rig.folder / folder).rename(rig.folder / f"{folder}-{len(prompts)}")
    assert len(prompts[0]) == 3
    assert prompts[0] == prompts[1]


def test_a_call_that_does_not_fit_goes_back_for_repair(rig: Any) -> None:
    """The library asks for the repair; its messages reach the model as text."""

    def reply(request: Request) -> str:
        if "validation error" not in request.text.lower():
            return calls(("Memory", {"note": "The bicycle is red"}))
        key = re.findall(r"json_doc_id=\[(\w+)\]", request.text)[-1]
        edit = {"op": "add", "path": "/content", "value": "The bicycle is red"}
        return calls(("PatchFunctionErrors", {"json_doc_id": key, "planned_edits": "add it", "patches": [edit]}))

    size, found, facts = rig.remember("langmem", SPANS[:1], QUESTION, reply)
    assert size == 1
    assert found[0].item.text == "The bicycle is red"
    assert facts["unreadable_replies"] == 0
    assert [message["role"] for message in rig.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert json.loads(rig.requests[1].messages[2]["content"])["calls"][0]["arguments"] == {"note": "The bicycle is red"}


def test_no_call_leaves_memory_as_it_was(rig: Any) -> None:
    replies = [calls(memory("The bicycle is red")), calls(), calls()]
    size, found, facts = rig.remember("langmem", SPANS, QUESTION, lambda request: replies[request.index])
    assert (size, found[0].item.text, facts["unreadable_replies"]) == (1, "The bicycle is red", 0)


@pytest.mark.parametrize(
    "wrong", ['{"calls": "none"}', '{"calls": [{"name": "Memory"}]}', '{"calls": [{"arguments": {}}]}', "[]", "no"]
)
def test_a_reply_that_is_no_list_of_calls_is_asked_again(rig: Any, wrong: str) -> None:
    replies = [wrong, calls(memory("The bicycle is red"))]
    size, _, facts = rig.remember("langmem", SPANS[:1], QUESTION, lambda request: replies[request.index])
    assert (size, facts["unreadable_replies"], len(rig.requests)) == (1, 0, 2)
