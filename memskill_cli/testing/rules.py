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
from typing import NamedTuple

import orjson

from memskill_cli.testing import acting
from memskill_cli.testing.script import Request

MAX_INSERTS = 8
ANSWER_WORDS = 12
_MAX_CHARS = 300
_DATE_LINE_CHARS = 60
_DIMENSIONS = 64
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\d{{1,2}} (?:{_MONTHS}),? \d{{4}}|(?:{_MONTHS}) \d{{1,2}},? \d{{4}}|\d{{4}}[/-]\d\d[/-]\d\d")
_UTTERANCE = re.compile(r"(?P<speaker>[^\W\d_][\w .'’-]{0,40}): +(?P<text>\S.*)")
_DATE_LABELS = frozenset({"date", "session", "session date", "time"})
_MEMORY = re.compile(r"\[(\d+)\] ?(.*)")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_STOP_WORDS = frozenset(
    """a an the and or but if of to in on at by for from with about as into is are was were be been being am do does
    did done have has had having it its it's this that these those there here i i'm i've me my mine we our us you your
    he him his she her they them their who whom whose what which when where why how will would can could should may
    might not no so too very just also really than then out up all some any more most much many such only own same
    get got oh yeah hey hi wow thanks""".split()  # noqa: SIM905
)


class Line(NamedTuple):
    """One line of a span, with the date it stands under; ``date`` and ``speaker`` are "" where there is none."""

    date: str
    speaker: str
    text: str

    @property
    def memory(self) -> str:
        stamp = f"{self.date} | " if self.date else ""
        who = f"{self.speaker}: " if self.speaker else ""
        return f"{stamp}{who}{self.text}"[:_MAX_CHARS].rstrip()


def reply(request: Request) -> str:
    """What the rule-made model of the request's role says."""
    return {"executor": execute, "answer": answer, "judge": judge, "designer": design}[request.role](request)


def execute(request: Request) -> str:
    """Actions in the text format, of the chosen skills' types only; ``ACTION: NOOP`` when there is nothing to do.

    What other memory systems ask is answered in their own forms.
    """
    from memskill_cli.testing import system_rules  # built upon this module

    if (said := system_rules.reply(request)) is not None:
        return said
    allowed = {name.lower() for name in re.findall(r"^Action type:\s*(\w+)", part(request, "skills"), re.M | re.I)}
    memories = listed(part(request, "memories"))
    if tips := acting.procedures(part(request, "span")):
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


def _write_down(tips: list[acting.Tip], allowed: set[str], memories: list[str]) -> str:
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
        scene = acting.Scene(part(request, "goal"), part(request, "history"), tuple(commands.splitlines()))
        return acting.choose(scene, memories)
    question = part(request, "question")
    asked = words(question)
    seen = Counter(word for text in memories for word in words(text))
    weight = {word: math.log(1 + len(memories) / seen[word]) for word in asked if word in seen}
    scores = [sum(weight[word] for word in sorted(asked & words(text) & weight.keys())) for text in memories]
    if not scores or max(scores) == 0:
        return "No information available"
    best = memories[scores.index(max(scores))]
    date = _DATE.search(best)
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


def words(text: str) -> frozenset[str]:
    """Content words, crudely stemmed."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    word = re.sub(r"['’]s$", "", word)
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


def informative(span: str) -> list[Line]:
    """The lines of a span worth remembering, most telling first."""
    lines = _lines(span)
    ranked = sorted(range(len(lines)), key=lambda i: (-_worth(lines[i]), i))
    return [lines[i] for i in ranked if _worth(lines[i]) > 0]


def _lines(span: str) -> list[Line]:
    date, lines = "", []
    for raw in filter(None, map(str.strip, span.splitlines())):
        found = _UTTERANCE.match(raw)
        if found and found["speaker"].lower() not in _DATE_LABELS:
            lines.append(Line(date, found["speaker"], found["text"]))
        elif (stamp := _DATE.search(raw)) and len(raw) <= _DATE_LINE_CHARS:
            date = stamp.group()
        else:
            lines.append(Line(date, "", raw))
    return lines


def _worth(line: Line) -> int:
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", line.text)
    worth = 2 * bool(re.search(r"\d", line.text)) + min(len(names), 2)
    worth += bool(re.search(r"\b(I|I'm|I've|My|my|We|we|our)\b", line.text))
    worth -= 2 * line.text.rstrip().endswith("?")
    return worth - 3 * (len(words(line.text)) < 3)


def nearest(line: Line, memories: list[str]) -> int | None:
    """The memory with at least 60 % of the line's content words, if there is one."""
    said = words(line.text)
    shares = [len(said & words(text)) / len(said) for text in memories]
    best = max(range(len(shares)), key=lambda i: shares[i], default=None)
    return best if best is not None and shares[best] >= 0.6 else None


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
    found = _UTTERANCE.match(text)
    sentences = re.split(r"(?<=[.!?])\s+", found["text"] if found else text)
    best = max(sentences, key=lambda sentence: len(words(sentence) & asked))
    kept = [word for word in best.split() if not words(word) or not words(word) <= asked]
    return " ".join(kept[:ANSWER_WORDS]).rstrip(".,!?;: ") or best
