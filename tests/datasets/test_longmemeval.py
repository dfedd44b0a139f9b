"""Reading LongMemEval's file: each oddity of the published one, how it is split, and files that are broken."""

from __future__ import annotations

import copy
import json
import random
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.base import PrepareOptions, ReaderCallbacks, SourceFile
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path, shipped
from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Trace, Turn

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "longmemeval"
IDS = shipped("longmemeval_s_ids.txt").read_text("utf-8").split()
PUBLISHED: dict[str, list[int]] = json.loads(shipped("longmemeval_s_splits.json").read_text("utf-8"))

BASE: dict[str, Any] = {
    "question_id": "mine_1",
    "question_type": "single-session-user",
    "question": "What is my cat called?",
    "question_date": "2023/05/30 (Tue) 23:40",
    "answer": "Tuppence",
    "answer_session_ids": ["s1"],
    "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00"],
    "haystack_session_ids": ["s1", "s2"],
    "haystack_sessions": [
        [
            {"role": "user", "content": "My cat Tuppence snores.", "has_answer": True},
            {"role": "assistant", "content": "Most cats do."},
        ],
        [{"role": "user", "content": "Is rye a grass?"}, {"role": "assistant", "content": "It is."}],
    ],
}


def record(change: Callable[[dict[str, Any]], Any] = lambda record: None, **fields: Any) -> dict[str, Any]:
    made = copy.deepcopy(BASE) | fields
    change(made)
    return made


def write(folder: Path, *records: Any) -> Path:
    path = folder / "some.json"
    path.write_text(json.dumps(list(records)), "utf-8")
    return path


def read(folder: Path, *records: Any, split: str = "test") -> tuple[list[Trace], list[str]]:
    path = write(folder, *records)
    notes: list[str] = []
    return list(get("longmemeval").read(SourceFile(str(path), path, split=split), ReaderCallbacks(notes.append))), notes


def test_a_record_is_a_trace_with_one_question_and_each_session_keeps_its_date(tmp_path):
    (trace,), notes = read(tmp_path, record())
    assert (trace.trace_id, trace.split, trace.dataset) == ("mine_1", "test", "longmemeval")
    assert [(s.label, s.date) for s in trace.sessions] == [
        ("s1", "2023/05/20 (Sat) 02:21"), ("s2", "2023/05/21 (Sun) 10:00")
    ]  # fmt: skip
    assert trace.sessions[0].turns == (Turn("user", "My cat Tuppence snores."), Turn("assistant", "Most cats do."))
    (query,) = trace.queries
    assert (query.query_id, query.category, query.date) == ("mine_1", "single-session-user", "2023/05/30 (Tue) 23:40")
    assert (query.question, query.gold_answers, query.scored) == ("What is my cat called?", ("Tuppence",), True)
    assert notes == ["all 1 records are taken as test"]


def test_evidence_is_the_marked_turns_and_answer_sessions_without_one(tmp_path):
    (marked,), _ = read(tmp_path, record())
    assert marked.queries[0].evidence == ("s1:0",)
    (both,), _ = read(tmp_path, record(answer_session_ids=["s1", "s2"]))
    assert both.queries[0].evidence == ("s1:0", "s2")
    (silent,), _ = read(
        tmp_path, record(lambda made: made["haystack_sessions"][0].insert(0, {"role": "user", "content": ""}))
    )
    assert silent.queries[0].evidence == ("s1:0",), "a turn without text is not counted"
    (none,), _ = read(tmp_path, record(lambda made: made.pop("answer_session_ids")))
    assert none.queries[0].evidence == ("s1:0",)


def test_evidence_names_only_sessions_that_are_there_and_each_once(tmp_path):
    odd = ["s2", "s2", "s9", None, {"a": 1}, 7]
    (trace,), _ = read(tmp_path, record(answer_session_ids=odd))
    assert trace.queries[0].evidence == ("s1:0", "s2")


def test_evidence_of_a_session_whose_label_occurs_twice(tmp_path):
    def change(made):
        made["haystack_session_ids"] = ["s1", "s1"]
        made["haystack_sessions"].reverse()

    (trace,), _ = read(tmp_path, record(change))
    assert trace.queries[0].evidence == ("s1#2:0",)
    spans = split_spans(trace, "turn")
    assert [span.sources[0].text for span in spans if span.sources[0].ref == "s1#2:0"] == ["My cat Tuppence snores."]


@pytest.mark.parametrize("mode", ["turn", "turn-pair", "full-session", "fixed-length"])
def test_every_span_says_the_date_of_its_session(tmp_path, mode):
    (trace,), _ = read(tmp_path, record())
    spans = split_spans(trace, mode, chunk_size=6, chunk_overlap=2)
    dates = [span.text.split("\n")[0] for span in spans]
    assert set(dates) == {"[2023/05/20 (Sat) 02:21]", "[2023/05/21 (Sun) 10:00]"}
    assert dates == sorted(dates)


@pytest.mark.parametrize(("answer", "text"), [(33, "33"), (2.5, "2.5"), (0, "0"), (" a week ", "a week")])
def test_answers_that_are_numbers_become_text(tmp_path, answer, text):
    (trace,), _ = read(tmp_path, record(answer=answer))
    assert trace.queries[0].gold_answers == (text,)


def test_abstention_questions_are_kept_apart_and_said_so(tmp_path):
    traces, notes = read(tmp_path, record(), record(question_id="mine_1_abs"), record(question_id="x_abs"))
    assert [(q.category, q.scored) for trace in traces for q in trace.queries] == [
        ("single-session-user", True), ("abstention", False), ("abstention", False)
    ]  # fmt: skip
    assert "abstention questions (asked only by eval --include-abstention): 2" in notes


def test_a_session_may_start_with_the_assistant_have_an_odd_number_of_turns_or_be_empty(tmp_path):
    def change(made):
        made["haystack_sessions"] = [[{"role": "assistant", "content": "Hello again."}], []]

    (trace,), notes = read(tmp_path, record(change))
    assert [(s.label, s.turns) for s in trace.sessions] == [("s1", (Turn("assistant", "Hello again."),))]
    assert "empty sessions, left out: 1" in notes


def test_turns_without_text_are_left_out_and_blanks_at_the_ends_too(tmp_path):
    def change(made):
        made["haystack_sessions"][0][0]["content"] = " \n"
        made["haystack_sessions"][0][1]["content"] = " Most do. \n"

    (trace,), notes = read(tmp_path, record(change))
    assert trace.sessions[0].turns == (Turn("assistant", "Most do."),)
    assert "turns without text, left out: 1" in notes


def test_sessions_are_read_in_the_files_order_and_a_note_says_when_that_is_not_time(tmp_path):
    (trace,), notes = read(tmp_path, record(lambda made: made["haystack_dates"].reverse()))
    assert [s.label for s in trace.sessions] == ["s1", "s2"]
    assert "records whose sessions are not in chronological order (the order of the file is kept): 1" in notes


# --- splits ------------------------------------------------------------------------------------------------------


def test_the_shipped_lists_cover_the_500_questions_once():
    assert {split: len(positions) for split, positions in PUBLISHED.items()} == {"train": 297, "val": 98, "test": 105}
    assert sorted(index for positions in PUBLISHED.values() for index in positions) == list(range(500))
    assert len(set(IDS)) == 500
    assert sum(name.endswith("_abs") for name in IDS) == 30
    assert sum(IDS[index].endswith("_abs") for index in PUBLISHED["test"]) == 4


def full(ids: list[str]) -> list[dict[str, Any]]:
    return [record(question_id=name) for name in ids]


def split_by_place() -> list[str]:
    return [split for index in range(500) for split, positions in PUBLISHED.items() if index in positions]


def test_the_full_file_is_split_as_published(tmp_path):
    traces, notes = read(tmp_path, *full(IDS), split="")
    assert [trace.split for trace in traces] == split_by_place()
    assert sum(query.scored for trace in traces if trace.split == "test" for query in trace.queries) == 101
    assert not any("split" in note for note in notes)


def test_a_full_file_in_another_order_is_split_by_question_id(tmp_path):
    shuffled = random.Random(7).sample(IDS, len(IDS))
    traces, _ = read(tmp_path, *full(shuffled), split="")
    assert {trace.trace_id: trace.split for trace in traces} == dict(zip(IDS, split_by_place(), strict=True))


def test_500_records_with_other_ids_are_split_by_position_and_said_so(tmp_path):
    traces, notes = read(tmp_path, *full([f"x{i}" for i in range(500)]), split="")
    assert [trace.split for trace in traces] == split_by_place()
    assert "500 question ids are not the published ones: split by position, as published" in notes


def test_a_smaller_file_is_split_by_question_id_and_said_so(tmp_path):
    some = [IDS[i] for i in (PUBLISHED["test"][3], PUBLISHED["train"][0], PUBLISHED["val"][9])]
    traces, notes = read(tmp_path, *full(some), split="")
    assert [trace.split for trace in traces] == ["test", "train", "val"]
    assert "3 of the 500 published records, split by question id: 1 train, 1 val, 1 test" in notes


def test_a_smaller_file_with_unknown_ids_is_never_split_silently(tmp_path):
    path = write(tmp_path, record(), record(question_id=IDS[0]))
    with pytest.raises(DataError, match=r"some\.json: 1 of its 2 question ids are not published ones \(first mine_1\)"):
        prepare("longmemeval", data_dir=tmp_path / "data", source=str(path))
    with pytest.raises(DataError) as caught:
        prepare("longmemeval", data_dir=tmp_path / "data", source=str(path))
    assert caught.value.hint.endswith(f"memskill prepare --dataset longmemeval --source {path} --split test")
    made = prepare("longmemeval", data_dir=tmp_path / "data", source=str(path), ask=PrepareOptions(splits=("test",)))
    assert {name: size.traces for name, size in made.manifest.splits.items()} == {"test": 2}


def test_files_for_several_splits_add_up_and_do_not_change_each_others_digest(tmp_path):
    data = tmp_path / "data"
    first = write(tmp_path, record())
    before = prepare("longmemeval", data_dir=data, source=str(first), ask=PrepareOptions(splits=("test",))).manifest
    (tmp_path / "more").mkdir()
    second = write(tmp_path / "more", record(question_id="other"))
    after = prepare("longmemeval", data_dir=data, source=str(second), ask=PrepareOptions(splits=("train",))).manifest
    assert set(after.splits) == {"train", "test"}
    assert after.digest_of("test") == before.digest_of("test") != after.digest_of("train")
    assert [load_split("longmemeval", data, name)[0].trace_id for name in ("train", "test")] == ["other", "mine_1"]
    assert load_manifest("longmemeval", data) == after
    with pytest.raises(DataError, match="has data from"):
        prepare("longmemeval", data_dir=data, source=str(second), ask=PrepareOptions(splits=("test",)))


def test_senseless_wishes(tmp_path):
    for ask in (PrepareOptions(splits=("dev",)), PrepareOptions(splits=("test",)), PrepareOptions(limit=3)):
        with pytest.raises(UsageError):
            prepare("longmemeval", data_dir=tmp_path, ask=ask)
    path = write(tmp_path, record())
    with pytest.raises(UsageError):
        prepare("longmemeval", data_dir=tmp_path, source=str(path), ask=PrepareOptions(splits=("test", "val")))


# --- broken files ------------------------------------------------------------------------------------------------


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


HISTORIES = "haystack_sessions"
BROKEN = [
    (_del("question_id"), "question_id is missing"),
    (_set(" ", "question_id"), "question_id is empty"),
    (_set(7, "question_id"), "question_id is a whole number, expected text"),
    (_set("first", "question_id"), "(first): question_id first occurs twice"),
    (_del("question"), "(mine_1): question is missing"),
    (_set("", "question"), "(mine_1): question is empty"),
    (_del("question_type"), "(mine_1): question_type is missing"),
    (_del("question_date"), "(mine_1): question_date is missing"),
    (_del("answer"), "(mine_1): answer is missing"),
    (_set(None, "answer"), "(mine_1): answer is missing"),
    (_set(True, "answer"), "(mine_1): answer is true or false, expected text or a number"),
    (_set(" ", "answer"), "(mine_1): answer is empty"),
    (_del(HISTORIES), "(mine_1): haystack_sessions is missing"),
    (_set([[], []], HISTORIES), "(mine_1): haystack_sessions has no session with turns"),
    (_set("x", HISTORIES, 1), "(mine_1): haystack_sessions[1] is text, expected a list"),
    (_set("x", HISTORIES, 0, 1), "(mine_1): haystack_sessions[0][1] is text, expected an object"),
    (_del(HISTORIES, 0, 1, "role"), "(mine_1): haystack_sessions[0][1].role is missing"),
    (_set(None, HISTORIES, 0, 1, "content"), "(mine_1): haystack_sessions[0][1].content is missing"),
    (_del("haystack_dates", 0), "(mine_1): haystack_dates has 1 entries for 2 sessions"),
    (_set(7, "haystack_dates", 1), "(mine_1): haystack_dates[1] is a whole number, expected text"),
    (_del("haystack_session_ids"), "(mine_1): haystack_session_ids is missing"),
]


@pytest.mark.parametrize(("change", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_broken_file_is_named_with_record_and_field(tmp_path, change, problem):
    with pytest.raises(DataError) as caught:
        read(tmp_path, record(question_id="first"), record(change))
    assert caught.value.message.startswith("some.json: record 1")
    assert caught.value.message.endswith(problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"not JSON: premature EOF"),
        (b"<html>404</html>", r"not JSON: .*\(after 0 records\)"),
        (json.dumps([BASE]).encode()[:-40], r"not JSON: premature EOF \(after 1 records\)"),
        (b"{}", "expected a list of records, found an object"),
        (b"[]", "expected a list of records, found an empty list"),
        (b'["x"]', "record 0: the record is text, expected an object"),
        (b'["\xff"]', "not JSON: invalid bytes in UTF8 string"),
    ],
)
def test_a_file_that_is_no_list_of_records(tmp_path, content, problem):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"mine.json: {problem}"):
        list(get("longmemeval").read(SourceFile("", path, split="test"), ReaderCallbacks()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    (), *((name,) for name in BASE), (HISTORIES, 0), (HISTORIES, 0, 0), (HISTORIES, 0, 0, "role"),
    (HISTORIES, 0, 0, "content"), ("haystack_dates", 0), ("haystack_session_ids", 1),
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_anything_anywhere_is_read_or_refused_in_words(tmp_path_factory, place, value):
    made: Any = record(_set(value, *place)) if place else value
    path = write(tmp_path_factory.mktemp("wild"), made)
    refused = ""
    traces: list[Trace] = []
    try:
        traces = list(get("longmemeval").read(SourceFile("", path, split="test"), ReaderCallbacks()))
    except DataError as error:
        refused = error.message
    assert refused.startswith("some.json: ") if refused else traces
    assert all(turn.speaker and turn.text for trace in traces for s in trace.sessions for turn in s.turns)
    assert all(query.question and query.gold_answers[0] for trace in traces for query in trace.queries)


# --- real files, the sample, and size ----------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="the real files are not here")
def test_the_published_record_and_the_subset(tmp_path):
    one = prepare("longmemeval", data_dir=tmp_path / "a", source=str(REAL / "longmemeval_s_record0_e47becba.json"))
    assert {name: size.traces for name, size in one.manifest.splits.items()} == {"train": 1}
    (trace,) = load_split("longmemeval", tmp_path / "a", "train")
    assert (trace.trace_id, trace.queries[0].gold_answers) == ("e47becba", ("Business Administration",))
    assert len(trace.sessions) == 53
    seven = prepare("longmemeval", data_dir=tmp_path / "b", source=str(REAL / "longmemeval_s_subset_7records.json"))
    assert {name: size.traces for name, size in seven.manifest.splits.items()} == {"train": 5, "val": 2}
    assert "7 of the 500 published records, split by question id: 5 train, 2 val, 0 test" in seven.manifest.notes
    assert "empty sessions, left out: 4" in seven.manifest.notes


def test_the_sample_goes_to_test_and_has_every_kind_of_question(tmp_path):
    manifest = prepare("longmemeval", data_dir=tmp_path, sample=True).manifest
    assert manifest.splits["test"].traces == manifest.traces == 7
    assert manifest.categories == Counter(
        ["abstention", "knowledge-update", "multi-session", "single-session-assistant", "single-session-preference",
         "single-session-user", "temporal-reasoning"]
    )  # fmt: skip
    traces = load_split("longmemeval", tmp_path, "test")
    assert all(2 <= len(trace.sessions) <= 3 for trace in traces)
    assert all(len(split_spans(trace, "fixed-length", chunk_size=500)) == len(trace.sessions) for trace in traces)
    speakers = [s.turns[0].speaker for trace in traces for s in trace.sessions]
    assert "assistant" in speakers
    raw = json.loads(sample_path("longmemeval").read_text("utf-8"))
    assert any(isinstance(item["answer"], int) for item in raw)
    assert any([] in item[HISTORIES] for item in raw)


@pytest.mark.slow
def test_the_full_size_never_sits_in_memory_whole(tmp_path):
    """500 records, 270 MB, through the installed command: its peak is measured, as the system counts it."""
    path = tmp_path / "big.json"
    words = __doc__.split()
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for i, name in enumerate(IDS):
            talk = [{"role": role, "content": " ".join(draw.choices(words, k=180))} for role in ("user", "assistant")]
            histories = [[talk[0], talk[1]] * 5 for _ in range(50)]
            dates = [f"2023/05/{day % 28 + 1:02}" for day in range(50)]
            labels = [f"s{i}_{n}" for n in range(50)]
            made = record(
                question_id=name, haystack_sessions=histories, haystack_dates=dates, haystack_session_ids=labels
            )
            file.write(("[" if i == 0 else ",\n") + json.dumps(made))
        file.write("]")
    assert path.stat().st_size > 250_000_000
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    command = [Path(sys.executable).with_name("memskill"), "prepare", "--dataset", "longmemeval", "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command), "--source", str(path), "--data-dir", str(tmp_path / "data")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)
    print(f"peak {peak / 1e6:.0f} MB for a file of {path.stat().st_size / 1e6:.0f} MB")
    assert peak < 1_000_000_000
    assert len(load_split("longmemeval", tmp_path / "data", "test")) == 105
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    traces = load_split("longmemeval", tmp_path / "data", "train")
    assert traces[296].sessions[49].turns[9].text
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100_000_000
