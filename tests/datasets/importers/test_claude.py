"""Reading Claude's export: blocks, branches, attachments, and damaged files."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from memskill_cli.datasets.importers import chatgpt as other
from memskill_cli.datasets.importers import claude as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import archive, claude, claude_message, document, read, said

FIRST = "00000000-0000-4000-8000-000000000000"


def asked(**more):
    return claude_message("m1", "human", "Which bicycle fits me? I am 1.80 m tall.", "2025-05-02T08:00:01Z", **more)


def answered(uuid="m2", text="Take a 58 cm frame.", time="2025-05-02T08:00:09+00:00", **more):
    return claude_message(uuid, "assistant", text, time, **more)


def one(tmp_path, *messages, **more):
    (found,), skipped = read(importer, document(tmp_path / "conversations.json", [claude(list(messages), **more)]))
    return found, skipped


def test_a_conversation_with_its_times_name_and_account(tmp_path):
    found, skipped = one(tmp_path, asked(), answered())
    assert said(found) == [("user", "Which bicycle fits me? I am 1.80 m tall."), ("assistant", "Take a 58 cm frame.")]
    assert found.messages[0].timestamp == datetime(2025, 5, 2, 8, 0, 1, tzinfo=UTC)
    assert (found.user_id, found.session_id) == ("acc-1", "0f2e7c1a-0000-4000-9000-000000000001")
    assert found.metadata == {"id": found.session_id, "title": "Choosing a bicycle"}
    assert not skipped


def test_reasoning_and_tools_are_left_out_and_counted(tmp_path):
    blocks = [
        {"type": "thinking", "thinking": "The user is tall.", "summaries": []},
        {"type": "tool_use", "name": "web_search", "input": {"query": "frame sizes"}},
        {"type": "tool_result", "name": "web_search", "content": []},
        {"type": "token_budget"},
        {"type": "voice_note", "title": "Note", "text": "Or 60."},
        {"type": "text", "text": "58 cm."},
        {"type": "image", "source": {}},
    ]
    found, skipped = one(tmp_path, asked(), claude_message("m2", "assistant", blocks, "2025-05-02T08:00:09Z"))
    assert said(found)[1] == ("assistant", "Or 60.\n58 cm.\n[image]")
    assert skipped == {"parts with reasoning": 1, "records of the program": 1, "tool calls": 1, "tool results": 1}


def test_older_exports_have_text_without_blocks(tmp_path):
    message = {"uuid": "m1", "sender": "human", "text": "Hello", "created_at": "2024-02-03T04:05:06Z"}
    found, _ = one(tmp_path, message)
    assert said(found) == [("user", "Hello")]


def test_pasted_text_is_kept_and_files_are_named_once(tmp_path):
    attachments = [
        {"file_name": "", "file_type": "txt", "file_size": 31, "extracted_content": "A long text that was pasted"},
        {"file_name": "sizes.pdf", "file_type": "pdf", "extracted_content": "pages of text"},
    ]
    files = [{"file_name": "sizes.pdf"}, {"file_name": "me.jpeg"}]
    found, _ = one(
        tmp_path, claude_message("m1", "human", [], "2025-05-02T08:00:01Z", attachments=attachments, files=files)
    )
    assert said(found) == [("user", "A long text that was pasted\n[file: sizes.pdf]\n[image]")]


def test_messages_that_were_edited_or_answered_again_are_other_branches(tmp_path):
    messages = [
        asked(parent_message_uuid=FIRST),
        answered(parent_message_uuid="m1"),
        answered("m3", "Take 60 cm.", "2025-05-02T08:02:00Z", parent_message_uuid="m1"),
    ]
    found, skipped = one(tmp_path, *messages)
    assert said(found)[1:] == [("assistant", "Take 60 cm.")]
    assert skipped == {"messages of other branches": 1}
    found, _ = one(tmp_path, messages[2], *messages[:2])
    assert said(found)[1:] == [("assistant", "Take 60 cm.")]
    found, _ = one(tmp_path, *messages, current_leaf_message_uuid="m2")
    assert said(found)[1:] == [("assistant", "Take a 58 cm frame.")]


def test_all_messages_are_kept_if_a_parent_is_missing(tmp_path):
    found, skipped = one(tmp_path, asked(parent_message_uuid=FIRST), answered(parent_message_uuid="lost"))
    assert len(found.messages) == 2
    found, skipped = one(tmp_path, asked(parent_message_uuid=FIRST), answered("m1", parent_message_uuid=FIRST))
    assert len(found.messages) == 2
    assert not skipped


def test_an_archive_is_told_from_that_of_chatgpt(tmp_path):
    files = {"conversations.json": [claude([asked()])], "users.json": [{"uuid": "acc-1"}], "projects.json": []}
    path = archive(tmp_path / "data-2025.zip", files)
    assert importer.recognises(head_of(path))
    assert not other.recognises(head_of(path))
    (found,), _ = read(importer, path)
    assert said(found) == [("user", "Which bicycle fits me? I am 1.80 m tall.")]


def test_without_an_account_the_user_is_the_owner(tmp_path):
    found, _ = one(tmp_path, asked(), account=None)
    assert found.user_id == "owner"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({**asked(), "sender": "robot"}, "chat_messages[1].sender is 'robot', expected human or assistant"),
        ({**asked(), "sender": None}, "chat_messages[1].sender is null, expected text"),
        ({**asked(), "content": {"a": 1}}, "chat_messages[1].content is an object, expected a list"),
        ({**asked(), "content": [{"type": "text"}]}, "chat_messages[1].content[0].text is missing"),
        ({**asked(), "created_at": "yesterday"}, "chat_messages[1].created_at 'yesterday' is not a time"),
        ({**asked(), "attachments": ["x"]}, "chat_messages[1].attachments[0] is text, expected an object"),
        ("hello", "chat_messages[1] is text, expected an object"),
    ],
)
def test_malformed_messages_are_errors_with_their_place(tmp_path, message, problem):
    with pytest.raises(DataError) as caught:
        one(tmp_path, answered(), message)
    assert problem in caught.value.message
    assert caught.value.message.startswith("conversations.json: record 0: ")


def test_parents_in_a_circle_are_an_error(tmp_path):
    with pytest.raises(DataError, match="form a circle"):
        one(tmp_path, asked(parent_message_uuid="m2"), answered(parent_message_uuid="m1"))
    with pytest.raises(DataError, match="current_leaf_message_uuid names 'm9', which is no message"):
        one(tmp_path, asked(parent_message_uuid=FIRST), current_leaf_message_uuid="m9")
