"""Answer a query from a trace's memory bank: retrieve, then one call of the answer model."""

from __future__ import annotations

from collections.abc import Sequence

from memskill_cli.agent.prompts import Message, blocks, messages
from memskill_cli.llm.client import LLMClient, Reply
from memskill_cli.types import Query, Retrieved

MAX_ANSWER = 10_000
"""Most characters of an answer. Longer ones keep their beginning and their end, where <answer> usually is."""


async def answer(
    llm: LLMClient,
    query: Query,
    retrieved: Sequence[Retrieved],
    prompt: str = "answer",
    *,
    reuse_cached_error: bool = True,
) -> str:
    """The answer model's reply, at most about :data:`MAX_ANSWER` characters; ``prompt`` is the name of the template.

    Raises UnreadableReplyError if the reply ends inside its reasoning, ModelError if the call fails.
    ``reuse_cached_error`` as in :meth:`LLMClient.ask`.
    """
    reply: Reply[str] = await llm.ask(
        "answer", answer_messages(query, retrieved, prompt), reuse_cached_error=reuse_cached_error
    )
    return truncate_middle(reply.text.strip(), MAX_ANSWER)


def answer_messages(query: Query, retrieved: Sequence[Retrieved], prompt: str = "answer") -> list[Message]:
    memories = blocks(found.item.described for found in retrieved)
    return messages(prompt, memories=memories, asked=query.date, question=query.question)


def truncate_middle(text: str, most: int) -> str:
    """``text``; if it is longer than ``most`` characters, its two ends and the number of characters left out."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]} … ({left_out:,} characters left out) … {text[-half:]}"
