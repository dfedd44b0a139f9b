"""The native format: what is read, what is left out and counted, and what is refused with file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.conversations import Skipped
from memskill_cli.datasets.importers import messages
from memskill_cli.datasets.own.questions import read_questions
from memskill_cli.errors import DataError

from .files import asked, at, line, read, turns, write

SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


def one(folder: Path, record: Any) -> Any:
    """The only conversation of a file with one line."""
    return next(messages.read(write(folder / "c.jsonl", record), Skipped()))


# --- what is read ---


def test_the_example_of_the_contract(tmp_path):
    record = {
        "user_id": "u-anna",
        "session_id": "s1",
        "messages": [
            {"role": "user", "name": "Anna", "content": "I moved to Leeds.", "timestamp": "2025-03-04T09:34:00Z"},
            {"role": "assistant", "content": "Noted."},
        ],
        "metadata": {},
    }
    (trace,), _ = read(write(tmp_path / "c.jsonl", record), write(tmp_path / "q.jsonl", asked(evidence=["s1"])))
    assert trace.trace_id == "u-anna"
    assert [(s.label, s.date) for s in trace.sessions] == [("s1", "2025-03-04 (Tue) 09:34 UTC")]
    assert turns(trace) == [("Anna", "I moved to Leeds."), ("assistant", "Noted.")]
    assert trace.queries[0].evidence == ("s1",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("  I moved.\n", "I moved."),
        (["I moved.", {"type": "text", "text": "To Leeds."}], "I moved.\nTo Leeds."),
        ([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "See?"}], "[image]\nSee?"),
        ([{"type": "input_audio"}, {"type": "input_text", "text": "a"}, {"type": "file"}], "[audio]\na\n[file]"),
        ([{"text": "no type"}, {"type": "refusal", "refusal": "I can't."}], "no type\nI can't."),
        ([{"type": "text", "text": {"value": "of an assistant", "annotations": []}}], "of an assistant"),
        (None, ""),
        ([], ""),
        ("مرحبا 🐈‍⬛ שלום", "مرحبا 🐈‍⬛ שלום"),
    ],
)
def test_content_in_all_its_forms(tmp_path, content, text):
    assert one(tmp_path, said(content)).messages[0].content == text


def test_nulls_are_absent_and_keys_of_openai_are_ignored(tmp_path):
    message = {"role": "user", "content": "Hi", "name": None, "timestamp": None, "tool_calls": None, "weight": 1}
    record = {"user_id": None, "session_id": None, "messages": [message], "metadata": None, "tools": [{"x": 1}]}
    found = one(tmp_path, record)
    assert (found.user_id, found.session_id, found.messages[0].name) == (None, "1", None)


def test_a_file_without_user_ids_is_one_user_and_lines_are_sessions(tmp_path):
    path = write(tmp_path / "support chat.jsonl", line(None, None, "one"), line(None, None, "two"))
    (trace,), notes = read(path)
    assert (trace.trace_id, trace.split) == ("support chat", "unasked")
    assert [s.label for s in trace.sessions] == ["1", "2"]
    assert "users without questions: 1 of 1; nothing is trained or evaluated on them" in notes


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "c.jsonl"
    both = [json.dumps(line("u", "a")), "", "  ", json.dumps(line("u", None))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(both).encode() + b"\r\n\r\n")
    (trace,), _ = read(path)
    assert [s.label for s in trace.sessions] == ["a", "4"], "blank lines count as lines"


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_compressed_files_are_recognised_by_content(tmp_path, pack):
    plain = write(tmp_path / "plain.jsonl", *(line("u", f"s{i}", "text " * 40) for i in range(200))).read_bytes()
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(pack(plain))
    (trace,), _ = read(packed)
    assert len(trace.sessions) == 200


def test_half_of_an_emoji_is_read(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "cut \\ud83d"}]}\n', "utf-8")
    (trace,), _ = read(path)
    assert turns(trace) == [("user", "cut ?")]


def test_roles(tmp_path):
    record = line("u", "s", "Hi", "Hello")
    record["messages"] += [{"role": role, "content": role} for role in ("system", "tool", "tool", "developer")]
    record["messages"] += [{"role": "assistant", "content": None, "tool_calls": [{}]}]
    path = write(tmp_path / "c.jsonl", record)
    (trace,), notes = read(path)
    assert [speaker for speaker, _ in turns(trace)] == ["user", "assistant"]
    left_out = "left out: developer messages 1, empty messages 1, system messages 1, tool calls 1, tool messages 2"
    assert left_out in notes
    (trace,), _ = read(path, roles=("user", "tool"))
    assert [speaker for speaker, _ in turns(trace)] == ["user", "tool", "tool"]


def test_a_misspelt_role_is_no_silent_loss(tmp_path):
    path = write(tmp_path / "c.jsonl", {"messages": [{"role": "asistant", "content": "Hi"}]})
    with pytest.raises(DataError, match=r"c.jsonl:1: messages\[0\].role: unknown role 'asistant'; did you mean assi"):
        read(path)
    (trace,), _ = read(path, roles=("asistant",))
    assert turns(trace) == [("asistant", "Hi")]


# --- time and order ---


@pytest.mark.parametrize(
    ("time", "date"),
    [
        ("2025-03-04T09:34:00Z", "2025-03-04 (Tue) 09:34 UTC"),
        ("2025-03-04T09:34:00.123456+05:30", "2025-03-04 (Tue) 09:34 +05:30"),
        ("2025-03-04 23:59:59-08:00", "2025-03-04 (Tue) 23:59 -08:00"),
        ("2025-03-04T09:34", "2025-03-04 (Tue) 09:34"),
        ("2025-03-04", "2025-03-04 (Tue)"),
        (1741080840, "2025-03-04 (Tue) 09:34 UTC"),
        (1741080840.5, "2025-03-04 (Tue) 09:34 UTC"),
        (None, ""),
    ],
)
def test_times_keep_their_zone(tmp_path, time, date):
    (trace,), _ = read(write(tmp_path / "c.jsonl", at(time, line())))
    assert trace.sessions[0].date == date


def test_sessions_are_in_order_of_time_whatever_their_zones(tmp_path):
    records = [
        at("2025-03-04T09:00:00+09:00", line("u", "second")),  # 00:00 in UTC
        at("2025-03-03T23:30:00Z", line("u", "first")),
        line("u", "without a time, behind the first"),
        at(1741050000, line("u", "third")),  # 01:00 in UTC
    ]
    (trace,), notes = read(write(tmp_path / "c.jsonl", *records))
    assert [s.label for s in trace.sessions] == ["first", "without a time, behind the first", "second", "third"]
    assert "sessions without a time (they follow the one before them in the file): 1" in notes


def test_a_sessions_date_is_the_first_one_in_it(tmp_path):
    record = line("u", "s", "a", "b", "c")
    record["messages"][1]["timestamp"] = "2025-01-02"
    record["messages"][2]["timestamp"] = "2025-01-01"
    (trace,), notes = read(write(tmp_path / "c.jsonl", record))
    assert trace.sessions[0].date == "2025-01-02 (Thu)"
    assert [text for _, text in turns(trace)] == ["a", "b", "c"]
    assert any("not in order of time" in note for note in notes)


# --- the same session twice ---


def test_a_session_again_is_left_out_and_a_longer_version_replaces_it(tmp_path):
    records = [line("u", "s", "a", "b"), line("u", "s", "a", "b"), line("u", "s", "a", "b", "c"), line("u", "s", "a")]
    (trace,), notes = read(write(tmp_path / "c.jsonl", *records))
    assert [text for _, text in turns(trace)] == ["a", "b", "c"]
    assert "left out: duplicate sessions 2, sessions of which a longer version follows 1" in notes


def test_two_sessions_with_one_id_are_an_error_that_names_both(tmp_path):
    path = write(tmp_path / "c.jsonl", line("u", "s", "a"), line("v", "s", "b"), line("u", "s", "c"))
    with pytest.raises(DataError, match=r"c.jsonl:3: session_id 's' of user 'u' is also that of .* at c.jsonl:1"):
        read(path)


def test_line_numbers_of_several_files_do_not_collide(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", line("u", None, name))
    (trace,), _ = read(tmp_path)
    assert [(s.label, s.turns[0].text) for s in trace.sessions] == [("1", "a"), ("1#2", "b")]


# --- what is refused ---

BROKEN: list[tuple[Any, str]] = [
    ([], "the record is an empty list, expected an object"),
    ({"user_id": "u"}, "messages is missing"),
    ({"messages": {}}, "messages is an object, expected a list"),
    ({"messages": ["Hi"]}, "messages[0] is text, expected an object"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role is missing"),
    ({"messages": [{"role": "", "content": "Hi"}]}, "messages[0].role is empty"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    (said(7), "messages[0].content is neither text nor null nor a list of parts"),
    (said([7]), "messages[0].content[0] is neither text nor an object"),
    (said([{"type": "text"}]), "messages[0].content[0].text is not text"),
    (said("Hi", timestamp="yesterday"), "messages[0].timestamp 'yesterday' is not a time in ISO 8601, such as"),
    (said("Hi", timestamp=1741080840000), "messages[0].timestamp 1741080840000 is too large for epoch seconds"),
    (said("Hi", timestamp=True), "messages[0].timestamp is neither ISO 8601 text nor epoch seconds"),
    (said("Hi", nam="Anna"), "messages[0].nam: unknown key; did you mean name?"),
    ({**said("Hi"), "userid": "u"}, "userid: unknown key; did you mean user_id?"),
    ({**said("Hi"), "zzz": 1}, "zzz: unknown key; expected user_id, session_id, messages, metadata"),
    ({**said("Hi"), "user_id": 7}, "user_id is a whole number, expected text"),
    ({**said("Hi"), "session_id": " "}, "session_id is empty"),
    ({**said("Hi"), "metadata": []}, "metadata is an empty list, expected an object"),
]


@pytest.mark.parametrize(("record", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_what_is_broken_is_named_with_file_line_and_field(tmp_path, record, problem):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "c.jsonl", line(), record), format="messages")
    assert caught.value.message.startswith(f"c.jsonl:2: {problem}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "problem", "command"),
    [
        (b"", "c.jsonl: empty", "ls -l"),
        (b"\n \n", "c.jsonl: empty", "ls -l"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page", "head -c 500"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a Git LFS pointer", "git lfs pull"),
        ('{"messages": []}'.encode("utf-16"), "UTF-16, expected UTF-8", "iconv -f UTF-16"),
        (
            b'[\n {"messages": [{"role": "user", "content": "Hi"}]}]',
            "one JSON list of sessions, expected",
            "python3 -c",
        ),
        (b'[{"role": "user", "content": "Hi"}]', "one JSON list of messages, expected JSON Lines", "python3 -c"),
        (b'{\n "messages": [\n {"role": "user", "content": "Hi"}]}', "one JSON object over several", "python3 -c"),
        (b'{"messages": [{"role": "user", "content": "Hi"}]}\n{"messages"', "c.jsonl:2: not JSON", "every line"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not JSON", ""),
        (b"just some text", "not in a known format", "--format"),
        (b'{"a": 1}', "not in a known format .*; its first record has a", "--format"),
        (b"\x1f\x8b\x08\x00nothing", "damaged gzip file", "gzip -t"),
        (b"PK\x03\x04nothing", "damaged zip file", "unzip -t"),
    ],
)
def test_what_is_no_such_file_is_recognised_with_the_command_to_type(tmp_path, content, problem, command):
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read(path)
    assert command in caught.value.hint


def test_the_commands_that_convert_work(tmp_path):
    import subprocess

    path = tmp_path / "it's mine.json"
    path.write_text('[\n{"messages": [{"role": "user", "content": "Grüße"}]},\n{"messages": []}]', "utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    command = caught.value.hint.removeprefix("convert it: ")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    (trace,), _ = read(tmp_path / "it's mine.jsonl")
    assert turns(trace) == [("user", "Grüße")]


def test_a_folder_without_conversations(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no file of conversations"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "none")


def test_a_folder_of_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden.jsonl").write_text("no")
    (tmp_path / "readme.txt").write_text("no")
    write(tmp_path / "a.jsonl", line(None, "s"))
    write(tmp_path / "sub" / "a.jsonl", line(None, "s", "deep"))
    write(tmp_path / "questions.jsonl", asked("a"))
    traces, notes = read(tmp_path)
    assert [(trace.trace_id, trace.split) for trace in traces] == [("a", "train"), ("sub/a", "unasked")]
    assert "not read, because their names end in none of .jsonl, .json, .ndjson, .zip: readme.txt" in notes


# --- the published schema says the same as the reader ---


def accepts(path: Path, reader: Any) -> bool:
    try:
        list(reader(path))
    except DataError:
        return False
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**11), 10**11) | st.sampled_from(["", " ", "x", "2025-03-04", "text"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "refusal", "value", "x"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
SESSION_PLACES = ["user_id", "session_id", "messages", "metadata", "tools", "user", "role", "content", "name", "time"]


def sessions(value: Any, place: str) -> dict[str, Any]:
    if place in ("user_id", "session_id", "messages", "metadata", "tools", "user"):
        return {**said("Hi"), place: value}
    return said("Hi", **{"timestamp" if place == "time" else place: value}) if place != "content" else said(value)


@pytest.mark.parametrize("record", [record for record, _ in BROKEN if "timestamp 'y" not in _])
def test_the_schema_refuses_what_the_reader_refuses(record):
    schema = json.loads((SCHEMAS / "conversations.schema.json").read_text())
    assert not jsonschema.Draft202012Validator(schema).is_valid(record)


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from(SESSION_PLACES), value=JSON)
def test_schema_and_reader_of_sessions_agree(tmp_path_factory, place, value):
    record = sessions(value, place)
    schema = json.loads((SCHEMAS / "conversations.schema.json").read_text())
    path = write(tmp_path_factory.mktemp("s") / "c.jsonl", record)
    valid = jsonschema.Draft202012Validator(schema).is_valid(record)
    assert valid == accepts(path, lambda file: messages.read(file, Skipped())), record


@settings(max_examples=200, deadline=None)
@given(
    place=st.sampled_from(
        ["user_id", "question", "answers", "category", "asked", "evidence", "split", "quotes", "answer"]
    ),
    value=JSON | st.sampled_from(["train", "test", "tset", ["s1"], [3], ["a", 2.5]]),
)
def test_schema_and_reader_of_questions_agree(tmp_path_factory, place, value):
    record = {**asked(), place: value}
    schema = json.loads((SCHEMAS / "questions.schema.json").read_text())
    path = write(tmp_path_factory.mktemp("q") / "q.jsonl", record)
    assert jsonschema.Draft202012Validator(schema).is_valid(record) == accepts(path, read_questions), record


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", b"{", b"[", b"\x1f\x8b", b"PK\x03\x04", b"\xef\xbb\xbf{"])
)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory, data, start):
    path = tmp_path_factory.mktemp("wild") / "wild.jsonl"
    path.write_bytes(start + data)
    refused = ""
    try:
        read(path)
    except DataError as error:
        refused = error.message
    assert not refused or "wild.jsonl" in refused
