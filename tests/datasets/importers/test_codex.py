"""Reading rollouts of Codex: messages, contexts, repeated events, old files, and sessions that a program started."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from memskill_cli.datasets.importers import codex as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import codex_line as line
from .exports import codex_message as message
from .exports import codex_meta as meta
from .exports import lines, read, said

NAME = "rollout-2025-10-29T10-00-00-019a2d7a-0000-7000-8000-000000000001.jsonl"
TALK = [message("user", "Why Postgres?", clock="10:00:01"), message("assistant", "One transaction.", clock="10:00:09")]
SAID = [("user", "Why Postgres?"), ("assistant", "One transaction.")]


def one(tmp_path, *values: Any):
    (found,), skipped = read(importer, lines(tmp_path / NAME, values))
    return said(found), skipped


def test_a_session_with_its_times_and_what_is_known_of_it(tmp_path):
    (found,), skipped = read(importer, lines(tmp_path / NAME, [meta(), *TALK]))
    assert said(found) == SAID
    assert found.messages[0].timestamp == datetime(2025, 10, 29, 10, 0, 1, 317000, UTC)
    assert (found.user_id, found.session_id) == ("owner", "019a2d7a-0000-7000-8000-000000000001")
    assert found.metadata == {"id": found.session_id, "project": "/home/anna/shop"}
    assert not skipped


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (
            message("user", "<environment_context>\n  <cwd>/x</cwd>\n</environment_context>"),
            "contexts added by the program",
        ),
        (message("user", "<user_instructions>Be brief</user_instructions>"), "contexts added by the program"),
        (message("user", "# AGENTS.md instructions for /x\n\n<INSTRUCTIONS>\nx"), "contexts added by the program"),
        (message("user", "<turn_aborted>\nThe user interrupted\n</turn_aborted>"), "contexts added by the program"),
        (message("user", "Another language model started to solve this problem and made a summary"), "summaries"),
        (line("compacted", {"message": "So far", "replacement_history": []}), "summaries"),
        (line("event_msg", {"type": "user_message", "message": "Why Postgres?", "kind": "plain"}), "repeated events"),
        (line("event_msg", {"type": "agent_message", "message": "One transaction."}), "repeated events"),
        (line("event_msg", {"type": "token_count", "info": None}), "events"),
        (line("turn_context", {"cwd": "/x", "model": "gpt-5-codex"}), "records of the program"),
        (meta(id="of-another-session"), "records of the program"),
        (line("response_item", {"type": "reasoning", "summary": [], "encrypted_content": "x"}), "parts with reasoning"),
        (line("response_item", {"type": "function_call", "name": "shell", "arguments": "{}"}), "tool calls"),
        (line("response_item", {"type": "web_search_call", "status": "completed"}), "tool calls"),
        (line("response_item", {"type": "function_call_output", "call_id": "c", "output": "x"}), "tool results"),
        (line("response_item", {"type": "ghost_snapshot", "ghost_commit": {}}), "records of the program"),
        (line("response_item", {"type": "message", "role": "critic", "content": []}), "messages of unknown roles"),
        (line("something_new", {"a": 1}), "records of the program"),
    ],
)
def test_what_nobody_said_is_left_out_and_counted(tmp_path, value, kind):
    assert one(tmp_path, meta(), TALK[0], value, TALK[1]) == (SAID, {kind: 1})


def test_contexts_in_a_prompt_are_removed_and_pictures_named(tmp_path):
    value = message(
        "user",
        "<recommended_plugins>\nx\n</recommended_plugins>",
        "# AGENTS.md instructions for /x\n\nUse pytest.",
        '<image name=[Image #1] path="/tmp/1.png">',
        {"type": "input_image", "image_url": "data:…"},
        "</image>",
        "Why Postgres?",
    )
    assert one(tmp_path, meta(), value) == ([("user", "[image]\nWhy Postgres?")], {"contexts added by the program": 2})


@pytest.mark.parametrize("title", ["Context from my IDE setup", "Files mentioned by the user"])
def test_of_an_editor_only_the_request_is_kept(tmp_path, title):
    text = f"# {title}:\n\n## a.py: /home/a.py\n\n## My request for Codex:\nWhy Postgres?\n"
    assert one(tmp_path, meta(), message("user", text))[0] == SAID[:1]


def test_instructions_of_developers_have_the_role_of_the_system(tmp_path):
    assert one(tmp_path, meta(), message("developer", "You are Codex."), *TALK)[0] == [
        ("system", "You are Codex."),
        *SAID,
    ]


def test_prompts_that_were_taken_back_are_left_out_with_what_followed(tmp_path):
    undo = line("event_msg", {"type": "thread_rolled_back", "num_turns": 1})
    messages, skipped = one(tmp_path, meta(), *TALK, message("user", "Drop it"), message("assistant", "Done"), undo)
    assert messages == SAID
    assert skipped == {"messages that were taken back": 2, "events": 1}
    two = line("event_msg", {"type": "thread_rolled_back", "num_turns": 2})
    again = message("user", "Drop it"), message("user", "Drop it now")
    assert one(tmp_path, meta(), *TALK, *again, two)[0] == SAID
    more = line("event_msg", {"type": "thread_rolled_back", "num_turns": 9})
    assert one(tmp_path, meta(), *TALK, more)[0] == []


@pytest.mark.parametrize(
    "mark",
    [
        {"source": "exec"},
        {"source": "mcp"},
        {"source": {"subagent": "review"}},
        {"source": {"internal": "memory_consolidation"}},
        {"thread_source": "subagent"},
        {"originator": "codex_exec"},
    ],
)
def test_sessions_that_a_program_started_are_left_out(tmp_path, mark):
    assert read(importer, lines(tmp_path / NAME, [meta(**mark), *TALK])) == ([], {"machine-made sessions": 1})


@pytest.mark.parametrize("mark", [{"source": "vscode"}, {"source": {"custom": "my-editor"}}, {"source": None}])
def test_sessions_of_people_are_kept(tmp_path, mark):
    assert one(tmp_path, meta(**mark), *TALK)[0] == SAID


def test_old_files_whose_lines_are_the_items(tmp_path):
    head = {"id": "old-1", "timestamp": "2025-06-12T08:00:00.000Z", "instructions": None, "git": {}}
    values = [head, {"record_type": "state"}, *(value["payload"] for value in TALK)]
    path = lines(tmp_path / NAME, values)
    assert importer.recognises(head_of(path))
    (found,), skipped = read(importer, path)
    assert said(found) == SAID
    assert found.session_id == "old-1"
    assert found.messages[0].timestamp == datetime(2025, 6, 12, 8, tzinfo=UTC)
    assert skipped == {"records of the program": 1}


def test_without_a_first_line_the_file_names_the_session(tmp_path):
    (found,), _ = read(importer, lines(tmp_path / NAME, TALK))
    assert found.session_id == NAME.removesuffix(".jsonl")


@pytest.mark.parametrize("value", [{"payload": {}, "type": "other"}, {"payload": 3, "type": "event_msg"}, {"id": 1}, 3])
def test_other_files_are_not_recognised(tmp_path, value):
    assert importer.recognises(head_of(lines(tmp_path / NAME, [meta()])))
    assert not importer.recognises(head_of(lines(tmp_path / NAME, [{"a": 1}, value])))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"type": "response_item", "payload": None}, "payload is null, expected an object"),
        (line("response_item", {"type": "message", "content": []}), "payload.role is missing"),
        (line("response_item", {"type": "message", "role": "user", "content": 3}), "payload.content is a whole number"),
        (message("assistant", 3), "payload.content[0] is a whole number, expected an object"),
        (message("user", {"type": "input_text"}), "payload.content[0].text is missing"),
        (line("event_msg", {"type": "thread_rolled_back"}), "num_turns is missing"),
        ({**TALK[0], "timestamp": "now"}, "timestamp 'now' is not a time"),
        ([], "the record is an empty list, expected an object"),
    ],
)
def test_malformed_lines_are_errors_with_their_place(tmp_path, value, problem):
    path = lines(tmp_path / NAME, [meta(), value])
    with pytest.raises(DataError) as caught:
        read(importer, path)
    assert caught.value.message.startswith(f"{NAME}:2: ")
    assert problem in caught.value.message
