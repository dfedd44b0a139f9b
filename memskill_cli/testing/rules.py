"""Models made of rules: deterministic replies by role, sensible enough that training against them means something.

They read the tagged parts of our prompts (``<skills>``, ``<memories>``, ``<span>``, ``<question>``, ``<truth>``,
``<answer>``; in ALFWorld ``<goal>``, ``<history>`` and ``<commands>``) in the user's messages and know nothing else.
The executor writes only what its skills allow, so what is remembered, and hence what can be answered, depends on the
skills chosen.
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
    """What the rule-made model of the request's role says."""
    return {"executor": execute, "answer": answer, "judge": judge, "designer": design}[request.role](request)


def execute(request: Request) -> str:
    """Actions in the text format, of the chosen skills' types only; ``ACTION: NOOP`` when there is nothing to do.

    What other memory systems ask is answered in their own forms.
    """
    if (said := system_rules.reply(request)) is not None:
        return said
    allowed = {name.lower() for name in re.findall(r"^Action type:\s*(\w+)", part(request, "skills"), re.M | re.I)}
    memories = listed(part(request, "memories"))
    if tips := rule_actor.procedures(part(request, "span")):
        return _write_down(tips, allowed, memories)
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


def _write_down(tips: list[rule_actor.Tip], allowed: set[str], memories: list[str]) -> str:
    """A procedure for each trajectory of a goal not remembered yet; a remembered one is brought up to date."""
    blocks, taken = list[str](), set[int]()
    for tip in dict.fromkeys(tips):
        same = next((i for i, text in enumerate(memories) if text.startswith(f"Goal: {tip.goal}.")), None)
        if same is None and "insert" in allowed and len(blocks) < MAX_INSERTS:
            blocks.append(f"ACTION: INSERT\nMEMORY: {tip.text}")
        elif same is not None and "update" in allowed and same not in taken and memories[same] != tip.text:
            blocks.append(f"ACTION: UPDATE\nINDEX: {same}\nMEMORY: {tip.text}")
            taken.add(same)
    return "\n\n".join(blocks) or "ACTION: NOOP"


def answer(request: Request) -> str:
    """The date or the statement of the memory that shares the rarest words with the question; in a game, a command."""
    memories = listed(part(request, "memories"))
    if commands := part(request, "commands"):
        scene = rule_actor.Scene(part(request, "goal"), part(request, "history"), tuple(commands.splitlines()))
        return rule_actor.choose(scene, memories)
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
    """1 when the answer has every content word of the truth, 0.5 when it has some, else 0."""
    truth, given = words(part(request, "truth")), words(part(request, "answer"))
    shared = truth & given
    score = 1 if truth and shared == truth else 0.5 if shared else 0
    said = f"{len(shared)} of {len(truth)} content words of the truth are in the answer."
    return orjson.dumps({"explanation": said, "score": score}).decode()


def design(request: Request) -> str:
    """An analysis and a refinement in one, that change nothing."""
    empty: dict[str, object] = {"patterns": [], "recommendations": [], "changes": []}
    return orjson.dumps({"summary": "The rules propose no change.", **empty}).decode()


def embed(text: str) -> list[float]:
    """A unit vector of 64 numbers; texts that share content words are near each other."""
    vector = [0.0] * _DIMENSIONS
    for word in words(text):
        code = zlib.crc32(word.encode())
        vector[code % _DIMENSIONS] += 1.0 if code & 2**31 else -1.0
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector] if norm else [1.0] + [0.0] * (_DIMENSIONS - 1)


# --- reading the prompt ---


def part(request: Request, tag: str) -> str:
    """What stands between ``<tag>`` and its last ``</tag>`` in the first user message that has them, "" if none."""
    pattern = re.compile(rf"<{tag}>(.*)</{tag}>", re.S)
    for message in request.messages:
        if message.get("role") == "user" and (found := pattern.search(str(message.get("content") or ""))):
            return found.group(1).strip()
    return ""


def listed(text: str) -> list[str]:
    """The texts of lines ``[0] text``, in order; a line without a number continues the one before."""
    items: list[str] = []
    for line in text.splitlines():
        if found := _MEMORY.match(line.strip()):
            items.append(found.group(2))
        elif items:
            items[-1] += " " + line.strip()
    return items


def _contained(memories: list[str]) -> set[int]:
    """Memories that say nothing another one does not say; of two that say the same, the later."""
    bags = [words(text) for text in memories]
    return {
        i
        for i, bag in enumerate(bags)
        if any(bag < other or (bag == other and j < i) for j, other in enumerate(bags) if j != i)
    }


def _statement(memory: str, asked: frozenset[str]) -> str:
    """The sentence of a memory that is nearest the question, without the question's own words."""
    text = memory.partition(" | ")[2] or memory
    found = UTTERANCE.match(text)
    sentences = re.split(r"(?<=[.!?])\s+", found["text"] if found else text)
    best = max(sentences, key=lambda sentence: len(words(sentence) & asked))
    kept = [word for word in best.split() if not words(word) or not words(word) <= asked]
    return " ".join(kept[:ANSWER_WORDS]).rstrip(".,!?;: ") or best
