"""Questions: evidence in the form that scoring understands, nearest names, and splits that stay as they are."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.datasets.conversations import Question
from memskill_cli.datasets.own.splits import plan_splits
from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import DataError
from memskill_cli.scoring.evidence import is_from

from .files import asked, at, line, read, turns, write


def sources(folder, *questions, **options):
    conversations = [
        at("2025-01-05", line("u-anna", "s1", "I live in York.", "I see.", "I like tea.")),
        at("2025-03-05", line("u-anna", "s2", "I moved to Leeds.")),
        at("2025-02-05", line("u-bob", "b1", "Hello")),
        line("u-eve", "e1", "", ""),
    ]
    return read(write(folder / "c.jsonl", *conversations), write(folder / "q.jsonl", *questions), **options)


def query_of(traces, text):
    return next(query for trace in traces for query in trace.queries if query.question == text)


@pytest.mark.parametrize(
    ("evidence", "refs"),
    [(["s2"], ("s2",)), (["s1:2", "s2", "s2"], ("s1:2", "s2")), ([], ()), (None, ())],
)
def test_evidence_is_what_the_sources_of_spans_are_compared_with(tmp_path, evidence, refs):
    traces, _ = sources(tmp_path, asked(question="Q?", evidence=evidence))
    assert query_of(traces, "Q?").evidence == refs
    found = {source.ref for span in split_spans(traces[0], "full-session") for source in span.sources}
    assert all(any(is_from(ref, name) for ref in found) for name in refs)


def test_evidence_counts_messages_as_in_the_file(tmp_path):
    session = line("u", "s", "one", "two")
    session["messages"].insert(0, {"role": "system", "content": "be kind"})
    conversations = write(tmp_path / "c.jsonl", session)
    traces, _ = read(conversations, write(tmp_path / "q.jsonl", asked("u", evidence=["s:2", "s:0"])))
    assert turns(traces[0])[1] == ("assistant", "two")
    assert traces[0].queries[0].evidence == ("s:1", "s"), "a message that is left out stands for its session"


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (asked("u-ana"), "user_id: no user is called 'u-ana'; did you mean 'u-anna'?"),
        (asked("zzz"), "user_id: no user is called 'zzz'; there are 'u-anna', 'u-bob', 'u-eve'"),
        (asked(evidence=["s3"]), "evidence: no session is called 's3' of user 'u-anna'; did you mean 's2'?"),
        (asked(evidence=["b1"]), "no session is called 'b1' of user 'u-anna' (user 'u-bob' has such a session)"),
        (asked(evidence=["s1:3"]), "evidence 's1:3': session 's1' has 3 messages, from 0"),
        ({"question": "Q?", "answers": ["a"]}, "user_id is missing, and the conversations have 3 users"),
        (asked(split="tset"), "split is 'tset', expected train, val, test; did you mean test?"),
        ({"user_id": "u-anna", "question": "Q?", "answers": []}, "answers is an empty list"),
        ({"user_id": "u-anna", "question": "Q?", "answers": "a"}, "answers is text, expected a list"),
        ({"user_id": "u-anna", "question": "Q?", "answer": "a"}, "answer: unknown key; did you mean answers?"),
        (asked(asked="in July"), "asked 'in July' is not a time in ISO 8601"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_the_nearest_name(tmp_path, question, problem):
    with pytest.raises(DataError) as caught:
        sources(tmp_path, asked(), question)
    assert caught.value.message.startswith("q.jsonl:2: ")
    assert problem in caught.value.message


def test_questions_without_an_answer_in_the_conversations_are_scored_apart(tmp_path):
    traces, _ = sources(tmp_path, asked(question="Q?"), asked(question="R?", category="abstention"))
    assert (query_of(traces, "Q?").scored, query_of(traces, "R?").scored) == (True, False)


def test_nobody_is_trained_on_without_a_question_that_is_scored(tmp_path):
    train = {"split": "train"}
    asks = [asked(**train), asked("u-bob", category="abstention", **train)]
    traces, notes = sources(tmp_path, *asks)
    assert {trace.trace_id: trace.split for trace in traces} == {"u-anna": "train", "u-bob": "unasked"}
    assert any("whose questions are all of the kind abstention (not trained on): 1" in note for note in notes)


def test_the_only_user_need_not_be_named(tmp_path):
    conversations = write(tmp_path / "chat.jsonl", line(None, None, "Hi"))
    traces, _ = read(conversations, write(tmp_path / "q.jsonl", {"question": "Q?", "answers": ["a", 7]}))
    assert traces[0].trace_id == "chat"
    assert traces[0].queries[0].gold_answers == ("a", "7")


def test_numbers_dates_and_defaults(tmp_path):
    traces, _ = sources(tmp_path, asked(question="Q?", asked="2025-07-01"), asked(question="R?", category="fact"))
    assert (query_of(traces, "Q?").date, query_of(traces, "Q?").category) == ("2025-07-01 (Tue)", "question")
    assert query_of(traces, "R?").category == "fact"
    assert len({query.query_id for trace in traces for query in trace.queries}) == 2


def test_questions_twice_and_about_users_without_messages_are_counted(tmp_path):
    _, notes = sources(tmp_path, asked(), asked(), asked("u-eve"), asked("u-anna", "Where?", "York"))
    assert any("duplicate questions 1" in note and "users without messages to keep 1" in note for note in notes)


# --- splits ---


def questions(users, each=1, **fields):
    return {f"u{n}": [Question(f"u{n}", f"Q{i}?", ("a",), **fields) for i in range(each)] for n in range(users)}


@given(st.integers(5, 40), st.integers(1, 40))
def test_more_users_move_nobody(few, more):
    before, after = plan_splits(questions(few)), plan_splits(questions(few + more))
    assert {key: after.splits[key] for key in before.splits} == before.splits


def test_users_are_split_60_20_20_as_wholes():
    splits = plan_splits(questions(2000, each=2)).splits
    sizes = Counter(splits.values())
    assert all(abs(sizes[name] / 4000 - share) < 0.03 for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)))
    assert all(splits[f"u{n}", 0] == splits[f"u{n}", 1] for n in range(2000))


@pytest.mark.parametrize(("users", "each", "sizes"), [(4, 5, (12, 4, 4)), (1, 3, (1, 1, 1)), (1, 2, (1, 0, 1))])
def test_few_users_are_split_by_question_and_it_is_said(users, each, sizes):
    plan = plan_splits(questions(users, each))
    assert tuple(Counter(plan.splits.values())[name] for name in ("train", "val", "test")) == sizes
    assert any(f"users with questions: {users}, fewer than 5" in note for note in plan.notes)


def test_named_splits_are_kept():
    asked_of = questions(6, each=2)
    asked_of["u0"][0] = Question("u0", "Q0?", ("a",), split="val")
    plan = plan_splits(asked_of)
    assert plan.splits["u0", 0] == "val"
    assert "1 of 12 questions name their split" in plan.notes
    assert {**plan_splits(questions(6, each=2)).splits, ("u0", 0): "val"} == plan.splits


def test_a_split_without_questions_is_said_with_the_remedy():
    plan = plan_splits({"u": [Question("u", "Q?", ("a",), split="train")]})
    assert any("no question is in test" in note and "--split-by question" in note for note in plan.notes)


def test_by_time_the_latest_questions_are_test_and_train_reads_no_later_session(tmp_path):
    days = ["2025-01-10", "2025-02-10", "2025-02-10", "2025-03-10", "2025-04-10"]
    asks = [asked(question=f"Q{i}?", asked=day) for i, day in enumerate(days)]
    traces, notes = sources(tmp_path, *asks, split_by="time")
    anna = {trace.split: trace for trace in traces if trace.trace_id == "u-anna"}
    assert {split: [q.question for q in trace.queries] for split, trace in anna.items()} == {
        "train": ["Q0?", "Q1?", "Q2?"],
        "val": ["Q3?"],
        "test": ["Q4?"],
    }
    assert {split: [s.label for s in trace.sessions] for split, trace in anna.items()} == {
        "train": ["s1"],
        "val": ["s1", "s2"],
        "test": ["s1", "s2"],
    }
    assert any(note.startswith("split by time") for note in notes)


def test_by_time_every_question_needs_a_time(tmp_path):
    with pytest.raises(DataError, match=r"q.jsonl:2: asked is missing, and --split-by time needs it"):
        sources(tmp_path, asked(asked="2025-01-01"), asked(question="Q?"), split_by="time")


def test_by_time_questions_before_any_session_are_counted(tmp_path):
    asks = [asked("u-bob", f"Q{i}?", asked="2025-01-01") for i in range(3)]
    traces, notes = sources(
        tmp_path, *asks, asked(asked="2025-05-01"), asked("u-anna", "R?", asked="2025-06-01"), split_by="time"
    )
    assert not [trace for trace in traces if trace.trace_id == "u-bob"]
    assert any("train questions asked before any session 3" in note for note in notes)


def test_a_day_counts_to_its_end(tmp_path):
    conversations = write(tmp_path / "c.jsonl", at("2025-01-10T15:00:00Z", line("u", "s")))
    asks = [asked("u", f"Q{i}?", asked=f"2025-01-1{i}") for i in range(5)]
    traces, _ = read(conversations, write(tmp_path / "q.jsonl", *asks), split_by="time")
    assert [trace.split for trace in traces] == ["train", "val", "test"]
