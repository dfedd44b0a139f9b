"""Questions that a model writes: which are kept, and why others are not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from memskill_cli.agent.question_writer import Draft, draft_questions, drafts_grammar, parse_drafts, problem_of
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.types import Session, Turn

from ..factories import llm_client
from ..llm.test_grammars import _accepts as derives

SESSIONS = [
    Session("s1", "2025-01-01", (Turn("Anna", "I live in York.  My cat is called Bento."), Turn("assistant", "Nice!"))),
    Session("s2", "2025-03-01", (Turn("Anna", "I moved to Leeds at the weekend."),)),
]


def draft(question: str = "Where does Anna live?", answer: str = "Leeds", kind: str = "fact", *evidence: Any) -> Draft:
    return Draft(question, answer, kind, evidence or ((1, "I moved to Leeds"),))


def answers(request: Request) -> str:
    """Reads the answer off the memories; knows nothing else but the capital of France."""
    text = request.text
    if "capital" in text:
        return "Paris"
    return next(
        (word for word in ("Leeds", "York", "Bento") if word in text.partition("<question>")[0]), "I do not know"
    )


def problem(one: Draft, *others: str) -> tuple[str, int]:
    """Why it is not kept, and how many calls it took to know."""

    async def asked(url: str) -> str:
        client = llm_client(url)
        try:
            return await problem_of(client, one, SESSIONS, others, "answer")
        finally:
            await client.aclose()

    with MockLLMServer({"answer": answers}) as server:
        return asyncio.run(asked(server.url)), len(server.requests)


def test_a_question_whose_answer_follows_from_its_evidence_and_from_nothing_else_is_kept() -> None:
    assert problem(draft()) == ("", 2)
    assert problem(draft("What is Anna's cat called?", "Bento", "fact", (0, "My cat is called Bento."))) == ("", 2)


@pytest.mark.parametrize(
    ("one", "why", "calls"),
    [
        (draft("Where?", "Leeds", "fact", (1, "She moved to Leeds")), "evidence is not in the text", 0),
        (draft("Where?", "Leeds", "fact", (0, "I moved to Leeds")), "evidence is not in the text", 0),
        (draft("Where?", "Leeds", "fact", (7, "I moved to Leeds")), "evidence is not in the text", 0),
        (draft("Where?", "Leeds", "fact", (1, "Leeds")), "evidence is not in the text", 0),
        (Draft("Where?", "Leeds", "fact", ()), "evidence is not in the text", 0),
        (draft(kind="several sessions"), "evidence is in one session only", 0),
        (draft("Does Anna live in Leeds?", "Leeds"), "answer is in the question", 0),
        (draft("Where does Anna live", "York"), "answer does not follow from the evidence", 1),
        (draft("What is the capital of France?", "Paris"), "can be answered without the evidence", 2),
    ],
)
def test_what_is_not_kept(one: Draft, why: str, calls: int) -> None:
    assert problem(one) == (why, calls)


def test_a_question_that_was_asked_is_not_asked_again() -> None:
    assert problem(draft(), "Where does Anna live now?") == ("asked already", 0)
    assert problem(draft(), "What is Anna's cat called?")[0] == ""


ITEM = {"evidence": [{"session": 2, "quote": "I moved to Leeds"}], "kind": "change", "question": "Q?", "answer": "A"}


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"questions": [ITEM]}),
        "Here they are:\n```json\n" + json.dumps({"questions": [ITEM]}, indent=1) + "\n```",
        json.dumps({"questions": [ITEM]})[:-1],
        json.dumps(
            {"questions": [{**ITEM, "evidence": [{"session": "2", "quote": "I moved to Leeds"}, {"x": 1}]}, 7, {}]}
        ),
    ],
)
def test_replies_are_read_in_the_usual_forms(reply: str) -> None:
    assert parse_drafts(reply) == [Draft("Q?", "A", "change", ((1, "I moved to Leeds"),))]


def test_an_unknown_kind_is_a_fact_and_no_list_is_no_reply() -> None:
    assert parse_drafts(json.dumps({"questions": [{**ITEM, "kind": "trivia"}]}))[0].kind == "fact"
    for reply in ("", "I will not.", "{}", '{"questions": 3}', "[1]"):
        with pytest.raises(UnreadableReplyError):
            parse_drafts(reply)


def test_the_prompt_has_the_sessions_and_the_wanted_kinds() -> None:
    async def asked(url: str) -> list[Draft]:
        client = llm_client(url)
        try:
            return await draft_questions(client, SESSIONS, ["change", "fact"])
        finally:
            await client.aclose()

    with MockLLMServer({"designer": json.dumps({"questions": [ITEM]})}) as server:
        assert len(asyncio.run(asked(server.url))) == 1
        (request,) = server.requests
    assert request.role == "designer"
    assert "[session 2] 2025-03-01\nAnna: I moved to Leeds" in request.text
    assert "one of the kind change: something that changed" in request.text
    assert "preference:" not in request.text


def test_the_grammar_allows_only_sentences_of_the_sessions_as_evidence() -> None:
    odd = Session("s3", "", (Turn("A", 'She said "no\\yes" to me.'),))
    grammar = drafts_grammar([*SESSIONS, odd], ["fact", "change"])
    quotes = next(line for line in grammar.splitlines() if line.startswith("quote ::="))
    assert quotes.count("quote") == 5, "its own name, and four sentences; Nice! is too short"
    assert r'"{\"session\": 2, \"quote\": \"" "I moved to Leeds at the weekend." "\"}"' in quotes
    said = {"session": 3, "quote": odd.turns[0].text}
    first = {"evidence": [said], "kind": "fact", "question": "What did A hear?", "answer": "no"}
    second = {
        "evidence": [said, ITEM["evidence"][0]],
        "kind": "change",
        "question": "Where is Anna?",
        "answer": "Leeds",
    }
    assert not derives(grammar, json.dumps({"questions": [first, second]})), "a part of a sentence"
    second["evidence"] = [said, {"session": 2, "quote": SESSIONS[1].turns[0].text}]
    assert derives(grammar, json.dumps({"questions": [first, second]}))
    assert not derives(grammar, json.dumps({"questions": [second, first]})), "in the order of the kinds"
