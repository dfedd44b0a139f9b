"""The text of a message of ChatGPT's export: content types, parts that are objects, attached files, citation marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from memskill_cli.datasets.conversations import Skipped
from memskill_cli.datasets.importers.parts import REASONING, file_placeholder, joined, placeholder
from memskill_cli.datasets.importers.records import ExportRecord

_LEFT_OUT = {
    "thoughts": REASONING,
    "reasoning_recap": REASONING,
    "user_editable_context": "custom instructions",
    "model_editable_context": "saved memories of ChatGPT",
}
"""Content types that nobody said, with their kind of :data:`Skipped`."""
_MARK = re.compile("\ue200([a-z_]*)(?:\ue202([^\ue201]*))?\ue201|【\\d+†[^】]{0,200}】")
"""Marks in the text of answers: of citations, pictures and the like, and of entities, which have a name."""


def message_text(record: ExportRecord, message: dict[str, Any], prefix: str, skipped: Skipped) -> str | None:
    """The text of a message; None if its content is left out, which is counted."""
    content = record.field(message, "content", dict, prefix)
    prefix += "content."
    kind = record.string(content, "content_type", prefix)
    if kind in _LEFT_OUT:
        skipped[_LEFT_OUT[kind]] += 1
        return None
    texts = [*_texts(record, content, kind, prefix), *_attached(record, message, prefix)]
    return _MARK.sub(_without_mark, joined(texts))


def _texts(record: ExportRecord, content: dict[str, Any], kind: str, prefix: str) -> Iterator[str]:
    """The texts of ``parts``, else ``text`` (of code and of its output) or ``result`` (of web pages)."""
    if content.get("parts") is not None:
        for i, part in enumerate(record.expect(content["parts"], list, f"{prefix}parts")):
            yield _part(record, part, f"{prefix}parts[{i}]")
        return
    for name in ("text", "result"):
        if content.get(name) is not None:
            yield record.expect(content[name], str, f"{prefix}{name}")
            return
    if kind:
        yield placeholder(kind)


def _part(record: ExportRecord, part: Any, place: str) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    fields = record.expect(part, dict, place)
    text: str | None = record.optional(fields, "text", str, f"{place}.")  # of spoken words: audio_transcription
    return placeholder(record.string(fields, "content_type", f"{place}.")) if text is None else text


def _attached(record: ExportRecord, message: dict[str, Any], prefix: str) -> Iterator[str]:
    """Names of uploaded files. Pictures are parts of the content already."""
    metadata = record.optional(message, "metadata", dict, prefix) or {}
    for i, file in enumerate(record.objects(metadata, "attachments", f"{prefix}metadata.")):
        found = file_placeholder(record.string(file, "name", f"{prefix}metadata.attachments[{i}]."))
        if found != "[image]":
            yield found


def _without_mark(mark: re.Match[str]) -> str:
    """The name of an entity, which is the second item of its list; "" for other marks."""
    if mark[1] != "entity" or not mark[2]:
        return ""
    try:
        values = orjson.loads(mark[2])
    except orjson.JSONDecodeError:
        return ""
    return values[1] if isinstance(values, list) and len(values) > 1 and isinstance(values[1], str) else ""
