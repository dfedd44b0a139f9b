"""Text analysis of the rule-based models: lines with dates, content words, informative lines."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_INSERTS = 8
_MAX_CHARS = 300
_DATE_LINE_CHARS = 60
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = re.compile(rf"\d{{1,2}} (?:{_MONTHS}),? \d{{4}}|(?:{_MONTHS}) \d{{1,2}},? \d{{4}}|\d{{4}}[/-]\d\d[/-]\d\d")
UTTERANCE = re.compile(r"(?P<speaker>[^\W\d_][\w .'’-]{0,40}): +(?P<text>\S.*)")
_DATE_LABELS = frozenset({"date", "session", "session date", "time"})
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_STOP_WORDS = frozenset(
    """a an the and or but if of to in on at by for from with about as into is are was were be been being am do does
    did done have has had having it its it's this that these those there here i i'm i've me my mine we our us you your
    he him his she her they them their who whom whose what which when where why how will would can could should may
    might not no so too very just also really than then out up all some any more most much many such only own same
    get got oh yeah hey hi wow thanks""".split()  # noqa: SIM905
)


class DatedLine(NamedTuple):
    """A line of a span, with the date line above it. ``date`` and ``speaker`` are "" if there is none."""

    date: str
    speaker: str
    text: str

    @property
    def memory(self) -> str:
        stamp = f"{self.date} | " if self.date else ""
        who = f"{self.speaker}: " if self.speaker else ""
        return f"{stamp}{who}{self.text}"[:_MAX_CHARS].rstrip()


def words(text: str) -> frozenset[str]:
    """The content words of ``text``, roughly stemmed."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    word = re.sub(r"['’]s$", "", word)
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


def informative(span: str) -> list[DatedLine]:
    """The lines of a span with a positive score, highest first."""
    lines = _lines(span)
    ranked = sorted(range(len(lines)), key=lambda i: (-_score(lines[i]), i))
    return [lines[i] for i in ranked if _score(lines[i]) > 0]


def _lines(span: str) -> list[DatedLine]:
    date, lines = "", []
    for raw in filter(None, map(str.strip, span.splitlines())):
        found = UTTERANCE.match(raw)
        if found and found["speaker"].lower() not in _DATE_LABELS:
            lines.append(DatedLine(date, found["speaker"], found["text"]))
        elif (stamp := DATE.search(raw)) and len(raw) <= _DATE_LINE_CHARS:
            date = stamp.group()
        else:
            lines.append(DatedLine(date, "", raw))
    return lines


def _score(line: DatedLine) -> int:
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", line.text)
    worth = 2 * bool(re.search(r"\d", line.text)) + min(len(names), 2)
    worth += bool(re.search(r"\b(I|I'm|I've|My|my|We|we|our)\b", line.text))
    worth -= 2 * line.text.rstrip().endswith("?")
    return worth - 3 * (len(words(line.text)) < 3)


def nearest(line: DatedLine, memories: list[str]) -> int | None:
    """Index of the memory with the most of the line's content words; None if it has fewer than 60 % of them."""
    line_words = words(line.text)
    shares = [len(line_words & words(text)) / len(line_words) for text in memories]
    best = max(range(len(shares)), key=lambda i: shares[i], default=None)
    return best if best is not None and shares[best] >= 0.6 else None
