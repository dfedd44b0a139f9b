"""Small exports in the form of each product, with invented text, and how tests read them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memskill_cli.datasets.conversations import Conversation, Importer, Skipped


def read(importer: Importer, path: Path) -> tuple[list[Conversation], Skipped]:
    """All conversations of a file, and what was left out."""
    skipped = Skipped()
    return list(importer.read(path, skipped)), skipped


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def lines(path: Path, values: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return path


def document(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return path


def archive(path: Path, files: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, value in files.items():
            made.writestr(name, value if isinstance(value, str) else json.dumps(value))
    return path


# --- ChatGPT ------------------------------------------------------------------------------------------------


def chatgpt_node(
    parent: str | None, role: str, parts: list[Any], time: float | None = None, **more: Any
) -> dict[str, Any]:
    """A node of ``mapping``. ``more``: fields of the message; ``content``, ``metadata`` and ``author`` are merged."""
    message = {
        "author": {"role": role, "name": None, "metadata": {}, **more.pop("author", {})},
        "create_time": time,
        "update_time": None,
        "content": more.pop("content", {"content_type": "text", "parts": parts}),
        "status": "finished_successfully",
        "end_turn": True,
        "weight": 1.0,
        "metadata": more.pop("metadata", {}),
        "recipient": "all",
        "channel": None,
        **more,
    }
    return {"message": message, "parent": parent, "children": []}


def chatgpt(nodes: dict[str, Any], current: str | None, **more: Any) -> dict[str, Any]:
    """A conversation of an export. Nodes and messages have their key as ``id``."""
    for key, node in nodes.items():
        node["id"] = key
        if node["message"]:
            node["message"] = {"id": key, **node["message"]}
    return {
        "title": "Moving house",
        "create_time": 1741080000.25,
        "update_time": 1741080500.5,
        "mapping": nodes,
        "moderation_results": [],
        "current_node": current,
        "conversation_id": "67c6a1b2-0000-8000-a000-000000000001",
        "id": "67c6a1b2-0000-8000-a000-000000000001",
        "default_model_slug": "gpt-4o",
        "is_archived": False,
        **more,
    }


def chatgpt_root() -> dict[str, Any]:
    return {"message": None, "parent": None, "children": []}


# --- Claude -------------------------------------------------------------------------------------------------


def claude_message(uuid: str, sender: str, content: Any, time: str, **more: Any) -> dict[str, Any]:
    blocks = [{"type": "text", "text": content, "citations": []}] if isinstance(content, str) else content
    text = "\n".join(block.get("text", "This block is not supported on your current device yet.") for block in blocks)
    return {
        "uuid": uuid,
        "text": text,
        "content": blocks,
        "sender": sender,
        "created_at": time,
        "updated_at": time,
        "attachments": [],
        "files": [],
        **more,
    }


def claude(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "uuid": "0f2e7c1a-0000-4000-9000-000000000001",
        "name": "Choosing a bicycle",
        "summary": "",
        "created_at": "2025-05-02T08:00:00.123456Z",
        "updated_at": "2025-05-02T08:10:00.000000Z",
        "account": {"uuid": "acc-1"},
        "chat_messages": messages,
        **more,
    }


# --- Claude Code --------------------------------------------------------------------------------------------


def claude_code_line(kind: str, uuid: str, parent: str | None, content: Any, clock: str, **more: Any) -> dict[str, Any]:
    """A line of a session log of 5 June 2025."""
    message = {"role": kind, "content": content}
    if kind == "assistant":
        message |= {"id": f"msg_{uuid}", "type": "message", "model": "claude-opus-4-1", "stop_reason": None}
    return {
        "parentUuid": parent,
        "isSidechain": False,
        "userType": "external",
        "cwd": "/home/anna/garden",
        "sessionId": "5a1e0000-0000-4000-8000-000000000001",
        "version": "2.1.37",
        "gitBranch": "main",
        "type": kind,
        "message": message,
        "uuid": uuid,
        "timestamp": f"2025-06-05T{clock}.000Z",
        **more,
    }


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


# --- Codex --------------------------------------------------------------------------------------------------


def codex_line(kind: str, payload: dict[str, Any], clock: str = "10:00:00") -> dict[str, Any]:
    return {"timestamp": f"2025-10-29T{clock}.317Z", "type": kind, "payload": payload}


def codex_meta(**more: Any) -> dict[str, Any]:
    return codex_line(
        "session_meta",
        {
            "id": "019a2d7a-0000-7000-8000-000000000001",
            "timestamp": "2025-10-29T10:00:00.308Z",
            "cwd": "/home/anna/shop",
            "originator": "codex_cli_rs",
            "cli_version": "0.46.0",
            "instructions": None,
            "source": "cli",
            "git": {},
            **more,
        },
    )


def codex_message(role: str, *texts: Any, clock: str = "10:00:00") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text} if isinstance(text, str) else text for text in texts]
    return codex_line("response_item", {"type": "message", "role": role, "content": content}, clock)
