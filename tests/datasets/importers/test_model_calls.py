"""Conversations from traces: each message once, whatever calls repeat; and the forms in which messages are traced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memskill_cli.datasets.conversations import Message, Skipped
from memskill_cli.datasets.importers.model_calls import Run, conversations, exchange, messages_of
from memskill_cli.datasets.importers.records import ExportRecord

START = datetime(2025, 7, 1, 9, tzinfo=UTC)
ROLES = {"u": "user", "a": "assistant", "s": "system"}


def run(texts: str, minute: int = 0, trace: str = "", root: bool = False, thread: str = "t") -> Run:
    """A run whose messages are words such as ``u1``, in which the letter is the role."""
    said = tuple(Message(ROLES[word[0]], word) for word in texts.split())
    return Run(thread, trace or f"trace-{minute}", root, None, START + timedelta(minutes=minute), said, "here")


def merged(*runs: Run) -> str:
    (found,) = conversations(runs, Skipped())
    return " ".join(message.content for message in found.messages)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["u1 a1", "u1 a1 u2 a2", "u1 a1 u2 a2 u3 a3"], "u1 a1 u2 a2 u3 a3"),  # the whole history each time
        (["u1 a1", "u2 a2"], "u1 a1 u2 a2"),  # only what is new
        (["u1 a1 u2 a2", "u2 a2 u3 a3"], "u1 a1 u2 a2 u3 a3"),  # a window of the last messages
        (["u1 a1 u2 a2", "u1 a1 u2 a9"], "u1 a1 u2 a2"),  # the same call again
        (["u1 a1 u2 a2", "u1 a1 u3 a3"], "u1 a1 u2 a2 u3 a3"),  # from an earlier place on
        (["s1 u1 a1", "s2 u1 a1 u2 a2"], "s1 u1 a1 u2 a2"),  # with a system prompt that changes
        (["u1 a1", "s1 a2"], "u1 a1 a2"),
        (["u1 a1", "u1 a1 a2"], "u1 a1 a2"),  # two answers, one after the other
        (["u0 a0 u1 u1", "u1 u1 a2"], "u0 a0 u1 u1 a2"),
    ],
)
def test_each_message_once(calls, expected):
    assert merged(*(run(texts, minute) for minute, texts in enumerate(calls))) == expected
    assert merged(*reversed([run(texts, minute) for minute, texts in enumerate(calls)])) == expected


def test_repeated_messages_are_counted_and_new_ones_have_the_time_of_their_call():
    skipped = Skipped()
    (found,) = conversations([run("u1 a1"), run("u1 a1 u2 a2", 5)], skipped)
    assert skipped == {"messages that a later call repeats": 2}
    assert [message.timestamp for message in found.messages][1:3] == [START, START + timedelta(minutes=5)]


def test_a_root_run_with_messages_stands_for_its_trace():
    skipped = Skipped()
    runs = [run("s1 u1 a9", trace="x"), run("u1 a1", trace="x", root=True), run("u2 a2", 1, trace="y")]
    (found,) = conversations(runs, skipped)
    assert " ".join(message.content for message in found.messages) == "u1 a1 u2 a2"
    assert skipped["model calls below a run with the same messages"] == 1


def test_threads_are_conversations():
    runs = [run("u1 a1", thread="one"), run("u2 a2", thread="two"), run("u1 a1 u3 a3", 1, thread="one")]
    found = list(conversations(runs, Skipped()))
    assert [(one.session_id, len(one.messages)) for one in found] == [("one", 4), ("two", 2)]


def test_a_state_that_is_returned_has_what_was_asked():
    asked = [Message("user", "u1")]
    assert exchange(asked, [*asked, Message("assistant", "a1")]) == (*asked, Message("assistant", "a1"))
    assert exchange(asked, [Message("assistant", "a1")]) == (*asked, Message("assistant", "a1"))


def serialised(kind: str, text: str) -> dict:
    return {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", kind],
        "kwargs": {"content": text},
    }


ANSWER = {"role": "assistant", "content": "Paris."}


@pytest.mark.parametrize(
    "value",
    [
        [ANSWER],
        {"messages": [ANSWER]},
        {"messages": [[serialised("AIMessage", "Paris.")]]},
        {"choices": [{"index": 0, "message": ANSWER}, {"index": 1, "message": {**ANSWER, "content": "London."}}]},
        {"message": ANSWER},
        ANSWER,
        {"output": ANSWER},
        {"output": ["assistant", "Paris."]},
        ["assistant", "Paris."],
        [["ai", "Paris."]],
        {"generations": [[{"text": "Paris.", "message": serialised("AIMessageChunk", "Paris.")}]]},
        {"role": "assistant", "content": [{"type": "text", "text": "Paris."}, {"type": "reasoning", "text": "Hm."}]},
        {"type": "ai", "content": "Paris."},
        {"type": "ai", "data": {"content": "Paris."}},
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "Paris."}]},
    ],
)
def test_forms_of_messages(value):
    record = ExportRecord("here", {}, "")
    assert messages_of(record, value, "outputs", Skipped()) == [Message("assistant", "Paris.")]


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, "text", [], {}, [None], ["a", "b", "c"], {"messages": "x"}, {"messages": [ANSWER, 3]}),
        *({"role": "judge", "content": "x"}, {"role": "user"}, {"role": "user", "content": {"a": 1}}),
        {"output": {"output": {"output": {"output": {"output": {"output": ANSWER}}}}}},
        {"generations": [[{"text": "a completion"}]]},
    ],
)
def test_other_values_are_no_messages(value):
    assert messages_of(ExportRecord("here", {}, ""), value, "outputs", Skipped()) is None
