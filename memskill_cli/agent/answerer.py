"""Answering a query from a trace's memory bank: retrieve, then one call of the answering model."""

from __future__ import annotations

from collections.abc import Sequence

from memskill_cli.agent.prompts import Message, blocks, messages
from memskill_cli.llm.client import Gateway, Reply
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import Spaces
from memskill_cli.types import Query, Recall, Retrieved

MAX_ANSWER = 10_000
"""Characters of an answer that are kept: its beginning and its end, where an <answer> stands."""


def recall_from(bank: MemoryBank, spaces: Spaces, top_k: int) -> Recall:
    """Recalls the ``top_k`` memories of ``bank`` nearest to a question, in the retrieval space."""

    async def recall(query: Query) -> list[Retrieved]:
        vector = (await spaces.retrieval.aencode([query.question], "query"))[0]
        return bank.retrieve(vector, top_k, "retrieval")

    return recall


async def answer(
    gateway: Gateway, query: Query, retrieved: Sequence[Retrieved], prompt: str = "answer", *, settled: bool = True
) -> str:
    """The answering model's reply, as it is up to :data:`MAX_ANSWER`; ``prompt`` is the template it is asked with.

    Raises UnreadableReplyError for a reply that ends inside its reasoning, ModelError when there is none; ``settled``
    as in :meth:`Gateway.ask`.
    """
    reply: Reply[str] = await gateway.ask("answer", answer_messages(query, retrieved, prompt), settled=settled)
    return shortened(reply.text.strip(), MAX_ANSWER)


def answer_messages(query: Query, retrieved: Sequence[Retrieved], prompt: str = "answer") -> list[Message]:
    memories = blocks(found.item.text for found in retrieved)
    return messages(prompt, memories=memories, asked=query.date, question=query.question)


def shortened(text: str, most: int) -> str:
    """``text``; of one longer than ``most`` characters the two ends, and how many between them are left out."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]} … ({left_out:,} characters left out) … {text[-half:]}"
