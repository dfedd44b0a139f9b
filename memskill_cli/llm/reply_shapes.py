"""What litellm makes of replies: text, refusals, streams, rows of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memskill_cli.llm import import_litellm

litellm = import_litellm()


def content_of(message: Any) -> str:
    """The text of a message, "" if it has none."""
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else ""


def refusal_of(choice: Any) -> str:
    """What a reply without text says instead: a refusal, or that a filter has removed the text; "" if nothing."""
    fields = getattr(choice.message, "provider_specific_fields", None) or {}
    refusal = getattr(choice.message, "refusal", None) or fields.get("refusal")
    if refusal:
        return str(refusal)
    return "content_filter" if choice.finish_reason == "content_filter" else ""


async def read_stream(reply: Any) -> Any:
    """The complete reply of a stream; any other ``reply`` as it is."""
    if not isinstance(reply, litellm.CustomStreamWrapper):
        return reply
    chunks = [chunk async for chunk in reply]
    whole = litellm.stream_chunk_builder(chunks) if chunks else None
    if whole is None:
        raise litellm.BadGatewayError("the stream is empty", model="", llm_provider="")
    whole._hidden_params = {**(whole._hidden_params or {}), **(reply._hidden_params or {})}
    return whole


def ordered_rows(data: Sequence[Any]) -> list[Any]:
    """The rows of an embedding reply in the order of the texts."""
    return sorted(data, key=lambda row: row["index"])
