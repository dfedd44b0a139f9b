"""Answering a query from a trace's memory bank: retrieve, then one call of the answering model."""

from __future__ import annotations

from memskill_cli.agent.prompts import Message, messages, numbered
from memskill_cli.llm.gateway import Gateway
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.spaces import Spaces
from memskill_cli.records import Query, Retrieved


async def retrieve(bank: MemoryBank, query: Query, spaces: Spaces, top_k: int) -> list[Retrieved]:
    """The ``top_k`` memories nearest to the question, in the retrieval space."""
    vector = (await spaces.retrieval.aencode([query.question], "query"))[0]
    return bank.retrieve(vector, top_k, "retrieval")


async def answer(gateway: Gateway, query: Query, retrieved: list[Retrieved]) -> str:
    """The answering model's reply, as it is. Raises ModelError when there is none."""
    return (await gateway.ask("answer", answer_messages(query, retrieved))).text.strip()


def answer_messages(query: Query, retrieved: list[Retrieved]) -> list[Message]:
    memories = numbered(found.item.text for found in retrieved)
    return messages("answer", memories=memories, asked=query.date, question=query.question)
