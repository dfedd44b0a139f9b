"""Questions about conversations, written by the designer model and checked (``prepare --write-questions``).

A question is kept only if its evidence stands in the text word for word, the answer model gives its answer when it is
shown the evidence, and does not give it without.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from memskill_cli.agent.answerer import answer
from memskill_cli.agent.prompts import messages
from memskill_cli.agent.reply_json import repair_json
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import LLMClient
from memskill_cli.types import MemoryItem, Query, Retrieved, Session
from memskill_cli.utils.text_metrics import normalise, token_f1

KINDS = {
    "fact": "something that was said once",
    "change": "something that changed from one session to a later one: ask for the newest state",
    "time": "when something happened or will happen",
    "preference": "what somebody likes, dislikes or wants",
    "several sessions": "something that follows only from two or more sessions together",
}
"""Kinds of questions, the categories of the written file, with what the model is told about each."""
SAME_ANSWER = 0.5
"""Token F1 from which on a reply counts as the answer."""
SAME_QUESTION = 0.75
"""Token F1 from which on two questions of a user count as one."""
MIN_QUOTE = 8
"""Characters of the shortest evidence."""
MAX_QUOTE = 300
PROMPT = """
You are the designer of questions that test the memory of an assistant. You are given sessions of one user, numbered
from 1, each with its date. Write questions that only somebody who remembers these sessions can answer.

- Each question stands alone: name people, places and things. Never write "in this session" or "in the text".
- Each has one short answer: a name, a date, a number, a short phrase, in the words of the sessions.
- The answer is not in the question, and cannot be guessed without the sessions.
- If something may change later, say in the question which time is meant.
- Evidence: for each question one to three quotes, copied from the sessions character by character, from which the
  answer follows. Choose the quotes first.
- Ask about what the user said, not about general knowledge in the assistant's replies.

Reply with JSON only:
{"questions": [{"evidence": [{"session": 1, "quote": "…"}], "kind": "…", "question": "…", "answer": "…"}]}
""".strip()
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_CHARS = r'[^"\\\x00-\x1F\x7F]'


class Draft(NamedTuple):
    """A question as the model wrote it. ``evidence`` has (number of the session from 0, quote)."""

    question: str
    answer: str
    kind: str
    evidence: tuple[tuple[int, str], ...]


def session_text(session: Session) -> str:
    """A session as the model reads it: one line a turn."""
    return "\n".join(f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in session.turns)


def writer_messages(sessions: Sequence[Session], kinds: Sequence[str]) -> list[dict[str, str]]:
    """The prompt for one question of each of ``kinds``."""
    shown = "\n\n".join(f"[session {n}] {one.date}\n{session_text(one)}" for n, one in enumerate(sessions, 1))
    asked = "\n".join(f"- one of the kind {kind}: {KINDS[kind]}" for kind in kinds)
    return messages(PROMPT, sessions=shown, wanted=asked)


async def draft_questions(llm: LLMClient, sessions: Sequence[Session], kinds: Sequence[str]) -> list[Draft]:
    """Ask for one question of each kind; the model may write fewer. UnreadableReplyError if there is no JSON."""
    reply = await llm.ask(
        "designer",
        writer_messages(sessions, kinds),
        parse=parse_drafts,
        grammar=drafts_grammar(sessions, kinds),
    )
    return reply.value


def parse_drafts(reply: str) -> list[Draft]:
    """The questions in a reply: JSON, possibly with text around it and small errors. Incomplete ones are left out.

    Raises UnreadableReplyError if there is no list of questions.
    """
    start = reply.find("{")
    value = repair_json(reply[start:]) if start >= 0 else None
    found = value.get("questions") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UnreadableReplyError('expected JSON: {"questions": [{"evidence", "kind", "question", "answer"}]}')
    return [draft for item in found if (draft := _draft(item)) is not None]


def _draft(item: Any) -> Draft | None:
    if not isinstance(item, dict):
        return None
    question, truth, kind = (" ".join(str(item.get(name) or "").split()) for name in ("question", "answer", "kind"))
    quotes = item.get("evidence")
    evidence = tuple(
        (int(quote["session"]) - 1, str(quote["quote"]).strip())
        for quote in (quotes if isinstance(quotes, list) else [])
        if isinstance(quote, dict) and quote.get("quote") and str(quote.get("session")).isdecimal()
    )
    return Draft(question, truth, kind if kind in KINDS else "fact", evidence) if question and truth else None


def drafts_grammar(sessions: Sequence[Session], kinds: Sequence[str]) -> str:
    """Grammar (GBNF) of the reply for the embedded model: one question a kind, and every quote is a sentence of the
    sessions."""
    quotes = [
        rf'"{{\"session\": {number}, \"quote\": \"" {_literal(sentence)} "\"}}"'
        for number, session in enumerate(sessions, 1)
        for sentence in _sentences(session)
    ]
    questions = ' ", " '.join(
        rf'"{{\"evidence\": [" quote (", " quote){{0,1}} "], \"kind\": \"{kind}\", '
        rf'\"question\": \"" char{{10,160}} "?\", \"answer\": \"" char{{1,60}} "\"}}"'
        for kind in kinds
    )
    root = rf'root ::= "{{\"questions\": [" {questions} "]}}"'
    return "\n".join([root, f"quote ::= {' | '.join(quotes)}", f"char ::= {_CHARS}"]) + "\n"


def _literal(text: str) -> str:
    """A text inside a JSON string, as a literal of GBNF."""
    return json.dumps(json.dumps(text, ensure_ascii=False)[1:-1], ensure_ascii=False)


def _sentences(session: Session) -> list[str]:
    """The sentences of a session that can be a quote; the whole turns if there are none."""
    found = [s.strip() for turn in session.turns for s in _SENTENCE.findall(turn.text)]
    kept = [sentence for sentence in found if MIN_QUOTE <= len(sentence) <= MAX_QUOTE]
    return list(dict.fromkeys(kept)) or [turn.text[:MAX_QUOTE] for turn in session.turns]


async def problem_of(
    llm: LLMClient, draft: Draft, sessions: Sequence[Session], others: Sequence[str], prompt: str
) -> str:
    """Why a question is not kept; "" if it is. ``others`` are the questions kept so far, ``prompt`` the answer prompt.

    The first checks need no model. Raises ModelError if a call fails.
    """
    if not draft.evidence or not all(_stands_in(sessions, number, quote) for number, quote in draft.evidence):
        return "evidence is not in the text"
    if draft.kind == "several sessions" and len({number for number, _ in draft.evidence}) < 2:
        return "evidence is in one session only"
    if set(normalise(draft.answer)) <= set(normalise(draft.question)):
        return "answer is in the question"
    if any(token_f1(draft.question, other) >= SAME_QUESTION for other in others):
        return "asked already"
    shown = [f"[{sessions[number].date}] {quote}" for number, quote in draft.evidence]
    if not await _answers(llm, draft, shown, prompt):
        return "answer does not follow from the evidence"
    if await _answers(llm, draft, [], prompt):
        return "can be answered without the evidence"
    return ""


def _stands_in(sessions: Sequence[Session], number: int, quote: str) -> bool:
    """Whether a turn of the session has the quote, apart from the length of blanks."""
    if not 0 <= number < len(sessions) or len(quote) < MIN_QUOTE:
        return False
    wanted = " ".join(quote.split())
    texts = [turn.text for turn in sessions[number].turns]
    return any(wanted in " ".join(text.split()) for text in [*texts, session_text(sessions[number])])


async def _answers(llm: LLMClient, draft: Draft, shown: Sequence[str], prompt: str) -> bool:
    """Whether the answer model gives the answer when it is shown these memories."""
    query = Query("", "", draft.kind, draft.question, (draft.answer,))
    memories = [Retrieved(MemoryItem(str(n), text, ()), 1.0) for n, text in enumerate(shown)]
    try:
        reply = await answer(llm, query, memories, prompt)
    except UnreadableReplyError:
        return False
    missing = Counter(normalise(draft.answer)) - Counter(normalise(reply))
    return not missing or token_f1(reply, draft.answer) >= SAME_ANSWER
