"""Repairs of replies in OpenAI's format, before litellm reads them: it refuses what some servers send."""

from __future__ import annotations

import re
from typing import Any

import orjson

_ODD_MESSAGE = re.compile(rb'"content"\s*:\s*\[|"usage"\s*:\s*null')


def mend(body: bytes) -> bytes:
    """``body`` with a text instead of a list of parts, with the role of messages, and with the index of embeddings.

    Any other body is returned as it is, without parsing it.
    """
    message = b'"choices"' in body and (b'"role"' not in body or _ODD_MESSAGE.search(body))
    vectors = b'"embedding"' in body and b'"index"' not in body
    if not message and not vectors:
        return body
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(reply, dict):
        return body
    for choice in _tables(reply.get("choices")):
        _mend_message(choice.get("message"))
    for index, row in enumerate(_tables(reply.get("data")) if vectors else ()):
        row["index"] = index
    if reply.get("usage", 0) is None:
        del reply["usage"]
    return orjson.dumps(reply)


def as_stream(body: bytes) -> bytes:
    """A complete reply as the events of a stream; b"" if ``body`` is none."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return b""
    choices = _tables(reply.get("choices")) if isinstance(reply, dict) else []
    if not choices:
        return b""
    kept = ("index", "finish_reason")
    deltas = [{**{name: each.get(name) for name in kept}, "delta": each.get("message")} for each in choices]
    chunk = {**reply, "object": "chat.completion.chunk", "choices": deltas}
    return b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"


def _mend_message(message: Any) -> None:
    if not isinstance(message, dict) or not {"content", "tool_calls", "reasoning_content"} & message.keys():
        return
    message.setdefault("role", "assistant")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(
            part["text"]
            for part in _tables(content)
            if part.get("type", "text") == "text" and isinstance(part.get("text"), str)
        )


def _tables(rows: Any) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
