"""Reading ChatGPT's export: the branch that is shown, kinds of content, what is left out, and damaged files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from memskill_cli.datasets.importers import chatgpt as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import archive, chatgpt, chatgpt_node, chatgpt_root, document, lines, read, said


def talk(**more: Any) -> dict[str, Any]:
    """A root, a system message, a question and an answer."""
    nodes = {
        "root": chatgpt_root(),
        "sys": chatgpt_node("root", "system", [""], None, metadata={"is_visually_hidden_from_conversation": True}),
        "q": chatgpt_node("sys", "user", ["I moved to Leeds."], 1741080001.5),
        "a": chatgpt_node("q", "assistant", ["Congratulations!"], 1741080003.0),
    }
    return chatgpt(nodes, "a", **more)


def one(tmp_path, nodes: dict[str, Any], current: str | None = "x"):
    """The messages of one conversation whose last node is ``x``, and what was left out."""
    path = document(tmp_path / "conversations.json", [chatgpt({"root": chatgpt_root(), **nodes}, current)])
    (found,), skipped = read(importer, path)
    return said(found), skipped


def content(**fields: Any) -> dict[str, Any]:
    """A node whose message has this content."""
    return {"x": chatgpt_node("root", "assistant", [], 1.0, content=fields)}


def test_the_branch_that_is_shown_with_times_title_and_id(tmp_path):
    (found,), skipped = read(importer, document(tmp_path / "conversations.json", [talk()]))
    assert said(found) == [("user", "I moved to Leeds."), ("assistant", "Congratulations!")]
    assert found.messages[0].timestamp == datetime(2025, 3, 4, 9, 20, 1, 500000, UTC)
    assert found.user_id == "owner"
    assert found.session_id == "67c6a1b2-0000-8000-a000-000000000001"
    assert found.metadata == {"id": found.session_id, "title": "Moving house", "model": "gpt-4o"}
    assert found.where == "conversations.json: record 0"
    assert skipped == {"hidden messages": 1}


def test_edited_messages_and_answers_made_again_are_other_branches(tmp_path):
    nodes = {
        "first": chatgpt_node("root", "user", ["I moved to Leds."], 1.0),
        "answer": chatgpt_node("first", "assistant", ["Where is that?"], 2.0),
        "edited": chatgpt_node("root", "user", ["I moved to Leeds."], 3.0),
        "again": chatgpt_node("edited", "assistant", ["Nice."], 4.0),
        "x": chatgpt_node("edited", "assistant", ["Welcome to Leeds."], 5.0),
    }
    messages, skipped = one(tmp_path, nodes)
    assert messages == [("user", "I moved to Leeds."), ("assistant", "Welcome to Leeds.")]
    assert skipped == {"messages of other branches": 3}


def test_without_a_current_node_the_newest_message_is_the_last_one(tmp_path):
    nodes = {
        "q": chatgpt_node("root", "user", ["Hello"], 1.0),
        "late": chatgpt_node("q", "assistant", ["Late"], 9.0),
        "early": chatgpt_node("q", "assistant", ["Early"], 5.0),
    }
    messages, _ = one(tmp_path, nodes, current=None)
    assert messages == [("user", "Hello"), ("assistant", "Late")]


def test_parts_that_are_objects_become_words_or_placeholders(tmp_path):
    parts = [
        {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1", "width": 708},
        "What plant is this?",
        None,
        {"content_type": "audio_transcription", "text": "It grows by the door.", "direction": "in"},
        {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_2"},
        {"content_type": "real_time_user_audio_video_asset_pointer", "audio_asset_pointer": {}},
        {"content_type": "video_container_asset_pointer", "asset_pointer": "sediment://file_3"},
        {"content_type": "something_new", "data": 1},
    ]
    nodes = {"x": chatgpt_node("root", "user", [], 1.0, content={"content_type": "multimodal_text", "parts": parts})}
    messages, _ = one(tmp_path, nodes)
    text = "[image]\nWhat plant is this?\nIt grows by the door.\n[audio]\n[audio]\n[video]\n[something new]"
    assert messages == [("user", text)]


def test_uploaded_files_are_named_and_pictures_not_written_twice(tmp_path):
    attachments = [
        {"id": "file-1", "name": "My CV.pdf", "mime_type": "application/pdf"},
        {"id": "file-2", "name": "photo.PNG", "mime_type": "image/png"},
    ]
    nodes = {"x": chatgpt_node("root", "user", ["Read it"], 1.0, metadata={"attachments": attachments})}
    assert one(tmp_path, nodes)[0] == [("user", "Read it\n[file: My CV.pdf]")]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"content_type": "thoughts", "thoughts": [{"summary": "s", "content": "c"}]}, "parts with reasoning"),
        ({"content_type": "reasoning_recap", "content": "Thought for 8s"}, "parts with reasoning"),
        ({"content_type": "user_editable_context", "user_profile": "I am Anna"}, "custom instructions"),
        ({"content_type": "model_editable_context", "model_set_context": "x"}, "saved memories of ChatGPT"),
    ],
)
def test_content_that_nobody_said_is_left_out(tmp_path, fields, kind):
    assert one(tmp_path, content(**fields)) == ([], {kind: 1})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content_type": "code", "language": "python", "text": "print(1)"}, "print(1)"),
        ({"content_type": "system_error", "name": "e", "text": "It failed"}, "It failed"),
        ({"content_type": "tether_browsing_display", "result": "A page"}, "A page"),
        ({"content_type": "super_widget", "widget": {}}, "[super widget]"),
    ],
)
def test_content_without_parts(tmp_path, fields, text):
    assert one(tmp_path, content(**fields))[0] == [("assistant", text)]


def test_marks_of_citations_are_removed_and_entities_keep_their_name(tmp_path):
    text = (
        'Try \ue200entity\ue202["restaurant","Dishoom","Leeds"]\ue201, it is good '
        "\ue200cite\ue202turn0search1\ue202turn0news2\ue201as your file says【4†source】."
    )
    messages, _ = one(tmp_path, {"x": chatgpt_node("root", "assistant", [text], 1.0)})
    assert messages == [("assistant", "Try Dishoom, it is good as your file says.")]


def test_calls_of_tools_are_left_out_and_results_have_the_role_of_tools(tmp_path):
    nodes = {
        "call": chatgpt_node("root", "assistant", [], 1.0, recipient="python"),
        "result": chatgpt_node("call", "tool", ["42"], 2.0, author={"name": "python"}),
        "odd": chatgpt_node("result", "critic", ["?"], 3.0),
        "off": chatgpt_node("odd", "assistant", ["cut"], 4.0, weight=0.0),
        "x": chatgpt_node("off", "assistant", ["It is 42."], 5.0),
    }
    nodes["call"]["message"]["content"] = {"content_type": "code", "text": "6 * 7"}
    messages, skipped = one(tmp_path, nodes)
    assert messages == [("tool", "42"), ("assistant", "It is 42.")]
    assert skipped == {"tool calls": 1, "messages of unknown roles": 1, "hidden messages": 1}


def test_messages_without_times_have_the_time_of_the_conversation(tmp_path):
    made = chatgpt({"x": chatgpt_node(None, "user", ["Hi"])}, "x")
    (found,), _ = read(importer, document(tmp_path / "conversations.json", [made]))
    assert found.messages[0].timestamp == datetime(2025, 3, 4, 9, 20, 0, 250000, UTC)


def test_an_archive_with_several_files_and_others(tmp_path):
    files = {
        "export/conversations-001.json": [talk(conversation_id="two")],
        "export/conversations-000.json": [talk(conversation_id="one"), talk(conversation_id="", id="zero")],
        "export/shared_conversations.json": [{"id": "s", "title": "shared"}],
        "export/user.json": {"id": "user-1", "email": "anna@example.org"},
        "export/chat.html": "<html></html>",
        "__MACOSX/export/conversations-000.json": "junk",
    }
    path = archive(tmp_path / "chatgpt.zip", files)
    assert importer.recognises(head_of(path))
    found, _ = read(importer, path)
    assert [one.session_id for one in found] == ["one", "zero", "two"]
    assert found[2].where == "chatgpt.zip/export/conversations-001.json: record 0"


def test_a_conversation_without_an_id_has_a_stable_one(tmp_path):
    path = document(tmp_path / "conversations.json", [talk(conversation_id=None, id=None)])
    (found,), _ = read(importer, path)
    assert found.session_id == "conversations.json-0"


@pytest.mark.parametrize("value", [[talk()], talk()], ids=["list", "object"])
def test_recognised_by_mapping(tmp_path, value):
    assert importer.recognises(head_of(document(tmp_path / "x.json", value)))
    assert importer.recognises(head_of(lines(tmp_path / "x.jsonl", [talk()])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping": None}, "mapping is null, expected an object"),
        ({"mapping": []}, "mapping is an empty list, expected an object"),
        ({"current_node": "lost"}, "current_node names 'lost', which is no node of mapping"),
        ({"mapping": {"a": {"message": None, "parent": "lost"}}}, "mapping['a'].parent names 'lost'"),
        ({"mapping": {"a": {"message": None, "parent": "a"}}}, "form a circle"),
        ({"mapping": {"a": {"message": {}, "parent": None}}}, "mapping['a'].message.author is missing"),
        ({"mapping": {"a": []}}, "mapping['a'] is an empty list, expected an object"),
        ({"create_time": "soon"}, "create_time 'soon' is not a time"),
        ({"title": 3}, "title is a whole number, expected text"),
    ],
)
def test_malformed_conversations_are_errors_with_their_place(tmp_path, change, message):
    path = document(tmp_path / "conversations.json", [talk(), {**talk(), **change}])
    with pytest.raises(DataError) as caught:
        read(importer, path)
    assert caught.value.message.startswith("conversations.json: record 1: ")
    assert message in caught.value.message
    assert "docs/importing-conversations.md#chatgpt" in caught.value.hint


def test_a_malformed_part_names_its_place(tmp_path):
    with pytest.raises(DataError, match=r"mapping\['x'\].message.content.parts\[0\] is a whole number"):
        one(tmp_path, {"x": chatgpt_node("root", "user", [7], 1.0)})
