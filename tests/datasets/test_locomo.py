"""Reading LoCoMo's file: each oddity of the published one, and files that are broken."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.registry import get
from memskill_cli.errors import DataError
from memskill_cli.types import Trace, Turn

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "locomo" / "locomo10.json"

BASE: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "I got a cat yesterday."},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "What is it called?"},
        ],
    },
    "qa": [
        {"question": "When did Ann get a cat?", "answer": "7 May 2023", "evidence": ["D1:1"], "category": 2},
        {"question": "Whose dog is it?", "adversarial_answer": "Ann's", "evidence": [], "category": 5},
    ],
}


def record(change: Callable[[dict[str, Any]], Any] = lambda record: None) -> dict[str, Any]:
    made = copy.deepcopy(BASE)
    change(made)
    return made


def read(folder: Path, *records: Any) -> tuple[list[Trace], list[str]]:
    path = folder / "locomo10.json"
    path.write_text(json.dumps(list(records)), "utf-8")
    notes: list[str] = []
    return list(get("locomo").read(SourceFile(str(path), path), ReaderCallbacks(notes.append))), notes


def numbered(n: int) -> list[dict[str, Any]]:
    return [{**record(), "sample_id": f"conv-{i}"} for i in range(n)]


def turns(*given: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda made: made["conversation"].update(session_1=[{"speaker": "Ann", **turn} for turn in given])


def test_sessions_come_in_number_order_each_with_its_date(tmp_path):
    def twelve(made):
        talk = made["conversation"]
        for n in (10, 2, 12, 3, 11):
            talk[f"session_{n}"] = talk["session_1"]
            talk[f"session_{n}_date_time"] = f"noon of day {n}"

    (trace, *_), _ = read(tmp_path, record(twelve))
    assert [s.label for s in trace.sessions] == [f"session_{n}" for n in (1, 2, 3, 10, 11, 12)]
    assert [s.date for s in trace.sessions][1:] == [f"noon of day {n}" for n in (2, 3, 10, 11, 12)]


def test_dates_without_a_session_are_ignored_and_noted(tmp_path):
    extra = {f"session_{n}_date_time": "never" for n in range(20, 36)}
    (trace, *_), notes = read(tmp_path, record(lambda made: made["conversation"].update(extra)))
    assert [s.label for s in trace.sessions] == ["session_1"]
    assert "conv-1: 16 dates without a session, from session_20 to 35, are ignored" in notes


def test_empty_sessions_are_left_out_and_noted(tmp_path):
    (trace, *_), notes = read(tmp_path, record(lambda made: made["conversation"].update(session_2=[])))
    assert [s.label for s in trace.sessions] == ["session_1"]
    assert "conv-1: empty sessions are left out: session_2" in notes


def test_a_turn_carries_the_caption_of_its_picture_even_when_the_picture_is_gone(tmp_path):
    bowl = "a photo of a bowl"
    given = turns(
        {"text": "  Look at this!\n", "blip_caption": bowl, "img_url": ["http://x/bowl.jpg"]},
        {"text": "And this", "blip_caption": bowl},
        {"text": "", "blip_caption": bowl},
        {"blip_caption": "two dogs"},
        {"text": "Grüße 🐈 日本"},
    )
    (trace, *_), _ = read(tmp_path, record(given))
    assert trace.sessions[0].turns == (
        Turn("Ann", "Look at this! [shares a photo of a bowl]"),
        Turn("Ann", "And this [shares a photo of a bowl]"),
        Turn("Ann", "[shares a photo of a bowl]"),
        Turn("Ann", "[shares a photo: two dogs]"),
        Turn("Ann", "Grüße 🐈 日本"),
    )


def test_silent_turns_are_left_out_and_noted(tmp_path):
    (trace, *_), notes = read(tmp_path, record(turns({"text": " "}, {"text": "Hi"})))
    assert trace.sessions[0].turns == (Turn("Ann", "Hi"),)
    assert any("1 turn(s) with neither text nor caption" in note for note in notes)


def test_numbers_become_text_and_answers_are_stripped(tmp_path):
    def change(made):
        made["qa"][0]["answer"] = 2022
        made["qa"].append({"question": " When? ", "answer": " 23 July, 2023", "category": 2})

    (trace, *_), _ = read(tmp_path, record(change))
    assert [q.gold_answers for q in trace.queries] == [("2022",), ("Ann's",), ("23 July, 2023",)]
    assert trace.queries[2].question == "When?"


def test_adversarial_questions_are_kept_but_not_scored(tmp_path):
    def change(made):
        made["qa"].append({"question": "Is it?", "answer": "No", "adversarial_answer": "Yes", "category": 5})
        made["qa"].append({"question": "Was it?", "answer": "No", "category": 5})

    (trace, *_), _ = read(tmp_path, record(change))
    assert [(q.category, q.scored) for q in trace.queries] == [("temporal", True)] + [("adversarial", False)] * 3
    assert [q.gold_answers for q in trace.queries[2:]] == [("Yes",), ("No",)]


@pytest.mark.parametrize(
    ("evidence", "refs"),
    [
        (["D1:1"], ("session_1:0",)),
        (["D1:2; D1:1"], ("session_1:1", "session_1:0")),
        (["D:01:2", "D1:2"], ("session_1:1",)),
        (["D8:6", "D"], ()),
        ([], ()),
        (None, ()),
        (7, ()),
    ],
)
def test_evidence_names_turns_however_it_is_written(tmp_path, evidence, refs):
    (trace, *_), _ = read(tmp_path, record(lambda made: made["qa"][0].update(evidence=evidence)))
    assert [query.evidence for query in trace.queries] == [refs, ()]


def test_evidence_counts_only_the_turns_that_are_kept(tmp_path):
    said = [{"dia_id": "D1:1", "text": " "}, {"dia_id": "D1:2", "text": "A cat."}]
    (trace, *_), _ = read(tmp_path, record(lambda made: (turns(*said)(made), made["qa"][0].update(evidence=["D1:2"]))))
    assert trace.queries[0].evidence == ("session_1:0",)
    assert trace.sessions[0].turns[0].text == "A cat."


def test_a_question_asked_twice_has_two_ids(tmp_path):
    (trace, *_), _ = read(tmp_path, record(lambda made: made["qa"].append(made["qa"][0])))
    assert [q.query_id for q in trace.queries] == ["conv-1:0", "conv-1:1", "conv-1:2"]
    assert {q.trace_id for q in trace.queries} == {"conv-1"}


@pytest.mark.parametrize(
    ("n", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (11, (7, 2, 2)), (20, (12, 4, 4))]
)
def test_splits_are_by_position(tmp_path, n, sizes):
    traces, notes = read(tmp_path, *numbered(n))
    assert [t.trace_id for t in traces] == [f"conv-{i}" for i in range(n)]
    assert [t.split for t in traces] == ["train"] * sizes[0] + ["val"] * sizes[1] + ["test"] * sizes[2]
    assert any("not the published 10" in note for note in notes) == (n != 10)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_conversations_are_in_every_split_and_said_so(tmp_path, n):
    traces, notes = read(tmp_path, *numbered(n))
    assert Counter(t.split for t in traces) == {"train": n, "val": n, "test": n}
    assert any("are the same" in note for note in notes)


def _del(*path: Any) -> Callable[[Any], None]:
    return _edit(lambda table, key: table.pop(key), *path)


def _set(value: Any, *path: Any) -> Callable[[Any], None]:
    return _edit(lambda table, key: table.__setitem__(key, value), *path)


def _edit(do: Callable[[Any, Any], Any], *path: Any) -> Callable[[Any], None]:
    def change(made: Any) -> None:
        for key in path[:-1]:
            made = made[key]
        do(made, path[-1])

    return change


TURN = ("conversation", "session_1", 1)
BROKEN = [
    (_del("sample_id"), "sample_id is missing"),
    (_set(" ", "sample_id"), "sample_id is empty"),
    (_set(7, "sample_id"), "sample_id is a whole number, expected text"),
    (_del("conversation"), "(conv-1): conversation is missing"),
    (_set([], "conversation"), "(conv-1): conversation is an empty list, expected an object"),
    (_del("conversation", "session_1"), "(conv-1): conversation has no session with turns"),
    (_set("x", "conversation", "session_1"), "(conv-1): conversation.session_1 is text, expected a list"),
    (
        _set(3, "conversation", "session_1_date_time"),
        "conversation.session_1_date_time is a whole number, expected text",
    ),
    (_set("hello", *TURN), "(conv-1): conversation.session_1[1] is text, expected an object"),
    (_del(*TURN, "speaker"), "(conv-1): conversation.session_1[1].speaker is missing"),
    (_set("", *TURN, "speaker"), "(conv-1): conversation.session_1[1].speaker is empty"),
    (_del(*TURN, "text"), "(conv-1): conversation.session_1[1].text is missing"),
    (_set(None, *TURN, "text"), "(conv-1): conversation.session_1[1].text is missing"),
    (_set(["x"], *TURN, "blip_caption"), "(conv-1): conversation.session_1[1].blip_caption is a list, expected text"),
    (_del("qa"), "(conv-1): qa is missing"),
    (_set([], "qa"), "(conv-1): qa has no question of categories 1..4, so nothing could be scored"),
    (_set("q", "qa", 0), "(conv-1): qa[0] is text, expected an object"),
    (_del("qa", 0, "question"), "(conv-1): qa[0].question is missing"),
    (_set(" ", "qa", 0, "question"), "(conv-1): qa[0].question is empty"),
    (_del("qa", 0, "category"), "(conv-1): qa[0].category is missing"),
    (_set(9, "qa", 0, "category"), "(conv-1): qa[0].category is 9, expected 1..5"),
    (_set(True, "qa", 0, "category"), "(conv-1): qa[0].category is true or false, expected a whole number"),
    (_set("2", "qa", 0, "category"), "(conv-1): qa[0].category is text, expected a whole number"),
    (_del("qa", 0, "answer"), "(conv-1): qa[0] has no answer"),
    (_set("", "qa", 0, "answer"), "(conv-1): qa[0].answer is empty"),
    (_set(["x"], "qa", 0, "answer"), "(conv-1): qa[0].answer is a list, expected text or a number"),
]


@pytest.mark.parametrize(("change", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_broken_file_is_named_with_record_and_field(tmp_path, change, problem):
    fine = {**record(), "sample_id": "conv-0"}
    with pytest.raises(DataError) as caught:
        read(tmp_path, fine, record(change))
    assert caught.value.message.startswith("locomo10.json: record 1")
    assert caught.value.message.endswith(problem)


def test_a_sample_id_must_not_occur_twice(tmp_path):
    with pytest.raises(DataError, match=r"record 1 \(conv-1\): sample_id conv-1 occurs twice"):
        read(tmp_path, record(), record())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"a": 1},\n {"b" 2}]', "not JSON: .*line 2, column 7"),
        (b"", "not JSON"),
        (b'["\xff"]', "not JSON"),
        (b'["\\ud800"]', "not JSON"),
        (b"<html>404</html>", "not JSON: .*line 1, column 1"),
        (b"{}", "expected a list of conversations, found an object"),
        (b"[]", "expected a list of conversations, found an empty list"),
        (b'["x"]', "record 0: the record is text, expected an object"),
    ],
)
def test_a_file_that_is_no_list_of_conversations(tmp_path, content, problem):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"mine.json: {problem}"):
        list(get("locomo").read(SourceFile(str(path), path), ReaderCallbacks()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    (),
    ("sample_id",),
    ("conversation",),
    ("conversation", "session_1"),
    ("conversation", "session_1_date_time"),
    TURN,
    (*TURN, "speaker"),
    (*TURN, "text"),
    (*TURN, "blip_caption"),
    ("qa",),
    ("qa", 0),
    ("qa", 0, "question"),
    ("qa", 0, "category"),
    ("qa", 0, "answer"),
    ("qa", 1, "adversarial_answer"),
]


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_anything_anywhere_is_read_or_refused_in_words(tmp_path_factory, place, value):
    made: Any = record(_set(value, *place)) if place else value
    path = tmp_path_factory.mktemp("wild") / "wild.json"
    path.write_text(json.dumps([made]), "utf-8")
    refused = ""
    traces: list[Trace] = []
    try:
        traces = list(get("locomo").read(SourceFile(str(path), path), ReaderCallbacks()))
    except DataError as error:
        refused = error.message
    assert refused.startswith("wild.json: ") if refused else traces
    assert all(turn.speaker and turn.text for trace in traces for s in trace.sessions for turn in s.turns)
    assert all(q.question and (not q.scored or q.gold_answers[0]) for trace in traces for q in trace.queries)


@pytest.mark.skipif(not REAL.exists(), reason="the real file is not here")
def test_the_published_file():
    notes: list[str] = []
    traces = list(get("locomo").read(SourceFile("", REAL), ReaderCallbacks(notes.append)))
    queries = [query for trace in traces for query in trace.queries]
    assert [t.trace_id for t in traces] == [f"conv-{n}" for n in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50)]
    assert [t.split for t in traces] == ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    assert sum(len(s.turns) for t in traces for s in t.sessions) == 5882
    assert sum("[shares a photo" in turn.text for t in traces for s in t.sessions for turn in s.turns) == 1226
    assert Counter(q.category for q in queries) == {
        "multi-hop": 282, "temporal": 321, "open-domain": 96, "single-hop": 841, "adversarial": 446
    }  # fmt: skip
    assert sum(q.scored for q in queries) == 1986 - 446
    assert len({q.query_id for q in queries}) == 1986
    assert len({(q.trace_id, q.question) for q in queries}) == 1986 - 12
    assert all(turn.text == turn.text.strip() for t in traces for s in t.sessions for turn in s.turns)
    assert [note for note in notes if note.startswith("conv")] == [
        "conv-26: 16 dates without a session, from session_20 to 35, are ignored"
    ]


def test_a_turn_id_with_zeros_is_the_same_turn(tmp_path):
    said = [{"dia_id": "D1:01", "text": "A cat."}, {"dia_id": "odd", "text": "A dog."}]
    (trace, *_), _ = read(tmp_path, record(lambda made: (turns(*said)(made), made["qa"][0].update(evidence=["D01:1"]))))
    assert trace.queries[0].evidence == ("session_1:0",)
