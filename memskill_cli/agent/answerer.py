"""Answering a query from a trace's memory bank: retrieve, then one call of the answering model."""

from __future__ import annotations

from collections.abc import Sequence

from memskill_cli.agent.prompts import Message, blocks, messages
from memskill_cli.llm.gateway import Gateway
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.spaces import Spaces
from memskill_cli.records import Query, Recall, Retrieved


def recall_from(bank: MemoryBank, spaces: Spaces, top_k: int) -> Recall:
    """Recalls the ``top_k`` memories of ``bank`` nearest to a question, in the retrieval space."""

    async def recall(query: Query) -> list[Retrieved]:
        vector = (await spaces.retrieval.aencode([query.question], "query"))[0]
        return bank.retrieve(vector, top_k, "retrieval")

    return recall


async def answer(gateway: Gateway, query: Query, retrieved: Sequence[Retrieved], prompt: str = "answer") -> str:
    """The answering model's reply, as it is; ``prompt`` is the template it is asked with.

    Raises ModelError when there is none.
    """
    return (await gateway.ask("answer", answer_messages(query, retrieved, prompt))).text.strip()


def answer_messages(query: Query, retrieved: Sequence[Retrieved], prompt: str = "answer") -> list[Message]:
    memories = blocks(found.item.text for found in retrieved)
    return messages(prompt, memories=memories, asked=query.date, question=query.question)
