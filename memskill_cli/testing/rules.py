"""Rule-based models: deterministic replies by role, good enough for a meaningful training.

They use only the tagged parts of our prompts in the user messages (``<skills>``, ``<memories>``, ``<span>``,
``<question>``, ``<truth>``, ``<answer>``; in ALFWorld ``<goal>``, ``<history>`` and ``<commands>``). The executor
writes only what its skills allow, so memories and answers depend on the selected skills.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter

import orjson

from memskill_cli.testing import rule_actor, system_rules
from memskill_cli.testing.replies import Request
from memskill_cli.testing.rule_text import DATE, MAX_INSERTS, UTTERANCE, informative, nearest, words

ANSWER_WORDS = 12
_DIMENSIONS = 64
_MEMORY = re.compile(r"\[(\d+)\] ?(.*)")


def reply(request: Request) -> str:
    """The reply of the rule-based model for the request's role."""
    return {"executor": execute, "answer": answer, "judge": judge, "designer": design}[request.role](request)


def execute(request: Request) -> str:
    """Actions in the text format, only of the selected skills' types; ``ACTION: NOOP`` if there is nothing to do.

    Prompts of Mem0 and LangMem get replies in their formats.
    """
    if (other := system_rules.reply(request)) is not None:
        return other
    allowed = {name.lower() for name in re.findall(r"^Action type:\s*(\w+)", part(request, "skills"), re.M | re.I)}
    memories = listed(part(request, "memories"))
    if procedures := rule_actor.procedures(part(request, "span")):
        return _write_procedures(procedures, allowed, memories)
    blocks: list[str] = []
    gone = _contained(memories) if "delete" in allowed else set()
    blocks += [f"ACTION: DELETE\nINDEX: {index}" for index in sorted(gone)]
    taken = set(gone)
    inserts = 0
    for line in informative(part(request, "span")):
        near = nearest(line, memories)
        if near is None:
            if "insert" in allowed and inserts < MAX_INSERTS:
                blocks.append(f"ACTION: INSERT\nMEMORY: {line.memory}")
                inserts += 1
        elif "update" in allowed and near not in taken and not words(line.memory) <= words(memories[near]):
            blocks.append(f"ACTION: UPDATE\nINDEX: {near}\nMEMORY: {line.memory}")
            taken.add(near)
    return "\n\n".join(blocks) or "ACTION: NOOP"


def _write_procedures(procedures: list[rule_actor.Procedure], allowed: set[str], memories: list[str]) -> str:
    """Insert a procedure for each new goal, and update the memories of known goals."""
    blocks, taken = list[str](), set[int]()
    for procedure in dict.fromkeys(procedures):
        same = next((i for i, text in enumerate(memories) if text.startswith(f"Goal: {procedure.goal}.")), None)
        if same is None and "insert" in allowed and len(blocks) < MAX_INSERTS:
            blocks.append(f"ACTION: INSERT\nMEMORY: {procedure.text}")
        elif same is not None and "update" in allowed and same not in taken and memories[same] != procedure.text:
            blocks.append(f"ACTION: UPDATE\nINDEX: {same}\nMEMORY: {procedure.text}")
            taken.add(same)
    return "\n\n".join(blocks) or "ACTION: NOOP"


def answer(request: Request) -> str:
    """The date or a sentence of the memory that shares the rarest words with the question; in a game, a command."""
    memories = listed(part(request, "memories"))
    if commands := part(request, "commands"):
        observation = rule_actor.GameState(
            part(request, "goal"), part(request, "history"), tuple(commands.splitlines())
        )
        return rule_actor.choose(observation, memories)
    question = part(request, "question")
    asked = words(question)
    seen = Counter(word for text in memories for word in words(text))
    weight = {word: math.log(1 + len(memories) / seen[word]) for word in asked if word in seen}
    scores = [sum(weight[word] for word in sorted(asked & words(text) & weight.keys())) for text in memories]
    if not scores or max(scores) == 0:
        return "No information available"
    best = memories[scores.index(max(scores))]
    date = DATE.search(best)
    if date and re.match(r"\W*(when|what (date|day|month|year)|on (what|which))\b", question, re.I):
        return date.group()
    return _statement(best, asked)


def judge(request: Request) -> str:
    """1 if the answer has every content word of the truth, 0.5 if it has some, else 0."""
    truth, given = words(part(request, "truth")), words(part(request, "answer"))
    shared = truth & given
    score = 1 if truth and shared == truth else 0.5 if shared else 0
    explanation = f"{len(shared)} of {len(truth)} content words of the truth are in the answer."
    return orjson.dumps({"explanation": explanation, "score": score}).decode()


def design(request: Request) -> str:
    """A reply that is valid as analysis and as refinement, and proposes no change."""
    empty: dict[str, object] = {"patterns": [], "recommendations": [], "changes": []}
    return orjson.dumps({"summary": "The rules propose no change.", **empty}).decode()


def embed(text: str) -> list[float]:
    """A unit vector of 64 numbers. Texts with common content words are similar."""
    vector = [0.0] * _DIMENSIONS
    for word in words(text):
        code = zlib.crc32(word.encode())
        vector[code % _DIMENSIONS] += 1.0 if code & 2**31 else -1.0
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector] if norm else [1.0] + [0.0] * (_DIMENSIONS - 1)


# --- reading the prompt ---


def part(request: Request, tag: str) -> str:
    """The text between ``<tag>`` and the last ``</tag>`` in the first user message that has them; "" if none has."""
    pattern = re.compile(rf"<{tag}>(.*)</{tag}>", re.S)
    for message in request.messages:
        if message.get("role") == "user" and (found := pattern.search(str(message.get("content") or ""))):
            return found.group(1).strip()
    return ""


def listed(text: str) -> list[str]:
    """The texts of lines ``[0] text``, in order; a line without a number belongs to the text before it."""
    items: list[str] = []
    for line in text.splitlines():
        if found := _MEMORY.match(line.strip()):
            items.append(found.group(2))
        elif items:
            items[-1] += " " + line.strip()
    return items


def _contained(memories: list[str]) -> set[int]:
    """Indices of memories whose words are all in another memory; of two with equal words, the later one."""
    bags = [words(text) for text in memories]
    return {
        i
        for i, bag in enumerate(bags)
        if any(bag < other or (bag == other and j < i) for j, other in enumerate(bags) if j != i)
    }


def _statement(memory: str, asked: frozenset[str]) -> str:
    """The sentence of a memory that shares most words with the question, without these words."""
    text = memory.partition(" | ")[2] or memory
    found = UTTERANCE.match(text)
    sentences = re.split(r"(?<=[.!?])\s+", found["text"] if found else text)
    best = max(sentences, key=lambda sentence: len(words(sentence) & asked))
    kept = [word for word in best.split() if not words(word) or not words(word) <= asked]
    return " ".join(kept[:ANSWER_WORDS]).rstrip(".,!?;: ") or best
