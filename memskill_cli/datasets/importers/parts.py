"""The text of a message whose content is a list of parts: texts, pictures, reasoning, calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memskill_cli.datasets import message_content
from memskill_cli.datasets.conversations import Skipped
from memskill_cli.datasets.importers.records import ExportRecord

REASONING, TOOL_CALLS, TOOL_RESULTS = "parts with reasoning", "tool calls", "tool results"
PROGRAM = "records of the program"
"""Kinds of :data:`Skipped`."""
_TEXT = frozenset({"text", "input_text", "output_text"})
_REASONING = frozenset({"thinking", "redacted_thinking", "reasoning", "thoughts"})
_PROGRAM = frozenset({"token_budget", "flag"})
_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "tool_call", "server_tool_call", "function_call"})
_MEDIA = ("image", "audio", "video")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".svg", ".bmp")


def content_text(record: ExportRecord, content: Any, place: str, skipped: Skipped) -> str:
    """The text of ``content``: text, null, or a list of parts.

    Texts are joined by line breaks. Reasoning, calls of tools and their results are left out and counted; any other
    part without a text is written as :func:`placeholder`. Raises DataError for content of another type.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = record.expect(content, list, place)
    return joined(_part_text(record, part, f"{place}[{i}]", skipped) for i, part in enumerate(parts))


def placeholder(kind: str) -> str:
    """``[image]``, ``[audio]`` or ``[video]`` for a part that is not text; another type as ``[<its name>]``."""
    return next((f"[{word}]" for word in _MEDIA if word in kind), message_content.placeholder(kind))


def file_placeholder(name: str) -> str:
    """``[image]`` for a picture, ``[file: <name>]`` for another file; ``[file]`` if it has no name."""
    if name.lower().endswith(_PICTURES):
        return "[image]"
    name = " ".join(name.split())
    return f"[file: {name}]" if name else "[file]"


def joined(texts: Iterable[str]) -> str:
    """The texts that are not empty, one below the other."""
    return "\n".join(text for text in texts if text.strip())


def _part_text(record: ExportRecord, part: Any, place: str, skipped: Skipped) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    fields = record.expect(part, dict, place)
    kind = record.string(fields, "type", f"{place}.")
    if kind in _TEXT or not kind:
        text: str = record.field(fields, "text", str, f"{place}.")
        return text
    if left_out := _left_out(kind):
        skipped[left_out] += 1
        return ""
    spoken = fields.get("text")  # of a voice note, for example
    return spoken if isinstance(spoken, str) and spoken.strip() else placeholder(kind)


def _left_out(kind: str) -> str:
    """The kind of :data:`Skipped` of a part; "" if it is kept."""
    if kind in _REASONING:
        return REASONING
    if kind in _CALLS:
        return TOOL_CALLS
    if kind in _PROGRAM:
        return PROGRAM
    return TOOL_RESULTS if kind.endswith("tool_result") or kind == "function_call_output" else ""
