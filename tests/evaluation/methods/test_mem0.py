"""Mem0, in addition to the tests of all systems: its decisions take effect; its prompts have the session's date."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import EncoderError
from memskill_cli.evaluation.methods.base import Method
from memskill_cli.testing.server import Request
from memskill_cli.types import Span

# Not importorskip, which would import Mem0 with its telemetry.
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(util.find_spec("mem0") is None, reason="memskill[mem0] not installed"),
]
SPANS = [Span("t", i, f"[{i + 1} May 2023]\nAna: My bicycle is colour number {i}.") for i in range(3)]
QUESTION = "Which colour is the bicycle?"


def asks_facts(request: Request) -> bool:
    return request.messages[0]["role"] == "system"


def scripted(*decisions: list[dict[str, str]]) -> Any:
    """One fact for each span; then the decisions, one list for each span."""
    left = list(decisions)

    def reply(request: Request) -> str:
        if asks_facts(request):
            return json.dumps({"facts": [request.messages[-1]["content"].splitlines()[-1]]})
        return json.dumps({"memory": left.pop(0)})

    return reply


ADD = {"id": "0", "text": "The bicycle is red", "event": "ADD"}


def test_its_decisions_change_its_memory(rig: Any) -> None:
    green = {"id": "0", "text": "The bicycle is green", "event": "UPDATE", "old_memory": ADD["text"]}
    other = {"id": "1", "text": "Ana has a bell", "event": "ADD"}
    size, found, _ = rig.remember("mem0", SPANS[:2], QUESTION, scripted([ADD], [green, other]))
    assert size == 2
    assert [(item.item.item_id, item.item.text) for item in found] == [
        ("m000001", "2 May 2023: The bicycle is green"),
        ("m000002", "2 May 2023: Ana has a bell"),
    ]


def test_it_forgets_and_never_uses_an_id_twice(rig: Any) -> None:
    gone = {"id": "0", "text": ADD["text"], "event": "DELETE"}
    size, found, _ = rig.remember("mem0", SPANS, QUESTION, scripted([ADD], [gone], [ADD | {"text": "No bicycle"}]))
    assert size == 1
    assert [(item.item.item_id, item.item.text) for item in found] == [("m000002", "3 May 2023: No bicycle")]


def test_its_second_question_shows_the_nearest_old_memories(rig: Any) -> None:
    rig.remember("mem0", SPANS[:2], QUESTION, scripted([ADD], []))
    shown = [request.text for request in rig.requests if not asks_facts(request)]
    assert ADD["text"] not in shown[0]
    assert f"{{'id': '0', 'text': '{ADD['text']}'}}" in shown[1]
    assert "colour number 1" in shown[1]


def test_today_is_the_day_of_the_session(rig: Any) -> None:
    undated = Span("t", 3, "Ana: My bicycle is gone.")
    rig.remember("mem0", [SPANS[0], undated], QUESTION, scripted([ADD], []))
    first, last = (request.messages[0]["content"] for request in rig.requests if asks_facts(request))
    assert "Today's date is 1 May 2023.\n" in first
    assert "Today's date is not known.\n" in last


def test_facts_in_another_form_are_asked_for_again(rig: Any) -> None:
    def reply(request: Request) -> str:
        if not asks_facts(request):
            return json.dumps({"memory": [ADD]})
        again = "could not be read" in request.messages[-1]["content"]
        return json.dumps({"facts": ["The bicycle is red"] if again else [{"fact": "The bicycle is red"}]})

    size, _, facts = rig.remember("mem0", SPANS[:1], QUESTION, reply)
    assert (size, facts["unreadable_replies"], len(rig.requests)) == (1, 0, 3)


def test_decisions_it_cannot_follow_spoil_no_others(rig: Any) -> None:
    wild = [
        {"id": "77", "text": "x", "event": "UPDATE"},
        {"event": "DELETE"},
        {"id": 0, "text": "", "event": "ADD"},
        ADD,
    ]
    size, _, _ = rig.remember("mem0", SPANS[:1], QUESTION, scripted(wild))
    assert size == 1


def test_a_memory_that_cannot_be_encoded_is_not_left_out(rig: Any) -> None:
    async def work(method: Method) -> None:
        real = rig.encoder.encode

        def encode(texts: list[str], side: str = "context") -> Any:
            if ADD["text"] in texts:
                raise EncoderError("the encoder is gone")
            return real(texts, side)

        rig.encoder.encode = encode
        await rig.read(method, SPANS[:1])

    with pytest.raises(EncoderError, match="is gone"):
        rig.run("mem0", work, scripted([ADD]))
    assert not (rig.folder / "memory").exists()


@pytest.mark.parametrize("first", ["", "import mem0"])
def test_its_makers_are_told_nothing_whoever_imported_it(tmp_path: Path, first: str) -> None:
    """In a separate process, because a library is imported once. Its network requests would be caught and fail."""
    script = f"""
import posthog
posted = []
posthog.Posthog.capture = lambda *args, **kwargs: posted.append(kwargs)
{first}
from memskill_cli.evaluation.methods.mem0 import _library, _new_memory
memory = _new_memory(4)
memory.embedding_model = type("E", (), {{"embed": lambda *a, **k: [1.0, 0, 0, 0]}})()
memory.add([{{"role": "user", "content": "hello"}}], user_id="u", infer=False)
assert memory.search("hello", user_id="u")["results"][0]["memory"] == "hello"
assert posted == [], posted
"""
    environ = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    if not first:
        assert not (tmp_path / ".mem0").exists()
