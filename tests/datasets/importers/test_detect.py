"""Folders as products leave them: which files are read, and which are named as left out."""

from __future__ import annotations

import pytest

from memskill_cli.datasets.importers import chatgpt as chatgpt_importer
from memskill_cli.datasets.importers import claude_code, codex, detect
from memskill_cli.errors import DataError

from .exports import chatgpt, chatgpt_node, claude_code_line, codex_message, codex_meta, document, lines


def test_a_folder_of_claude_code(tmp_path):
    (tmp_path / "a.jsonl").touch()  # a session that was opened and closed
    index = document(tmp_path / "sessions-index.json", {"version": 1, "entries": []})
    session = lines(tmp_path / "s.jsonl", [claude_code_line("user", "u", None, "Hi", "09:00:00")])
    titles = lines(tmp_path / "t.jsonl", [{"type": "summary", "summary": "Hi", "leafUuid": "u"}])
    found = detect([tmp_path / "a.jsonl", index, session, titles])
    assert found.importer is claude_code
    assert found.files == [session, titles]
    assert found.left_out == [tmp_path / "a.jsonl", index]


def test_a_folder_of_codex(tmp_path):
    history = lines(tmp_path / "history.jsonl", [{"session_id": "s", "ts": 1, "text": "Hi"}])
    session = lines(tmp_path / "rollout-1.jsonl", [codex_meta(), codex_message("user", "Hi")])
    found = detect([history, session])
    assert found.importer is codex
    assert (found.files, found.left_out) == ([session], [history])


def test_an_unpacked_export_of_chatgpt(tmp_path):
    files = [
        document(tmp_path / "conversations-000.json", [chatgpt({"a": chatgpt_node(None, "user", ["Hi"])}, "a")]),
        document(tmp_path / "conversations-001.json", [chatgpt({"a": chatgpt_node(None, "user", ["Ho"])}, "a")]),
        document(tmp_path / "message_feedback.json", []),
        document(tmp_path / "user.json", {"id": "user-1"}),
    ]
    found = detect(files)
    assert found.importer is chatgpt_importer
    assert (found.files, found.left_out) == (files[:2], files[2:])


def test_only_empty_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="empty"):
        detect([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
