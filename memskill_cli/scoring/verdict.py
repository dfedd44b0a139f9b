"""The score in a judge's reply, in whatever dress it comes (section 5 of the method).

Read are JSON objects with a score, with or without errors, and lines such as ``**Score:** 1``. Models show the form
before they fill it in, and change their minds: the last complete verdict counts. An explanation may quote the judged
answer, whose author may have put a verdict into it. So nothing inside the strings of sound JSON is read, of an object
with errors that has two different scores none is taken, and what stands in the judged answer word for word is a
quotation and no verdict, wherever the judge repeats it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.reasoning import ADVICE

SCORES = (0.0, 0.5, 1.0)
MAX_CHARS = 20_000
"""Characters of a reply that are read: its end. A verdict is short."""
_NUMBER = r"[-+]?(?:\d{1,9}(?:[.,]\d{1,9})?|\.\d{1,9})"
_VALUE = rf"(?P<value>{_NUMBER})(?:\s{{0,9}}(?:/|out\s+of)\s{{0,9}}(?P<most>{_NUMBER}))?"
_KEYED = re.compile(
    rf"""["'“”`*_]{{0,4}}\bscore["'“”`*_]{{0,4}}\s{{0,9}}[:=：]\s{{0,9}}["'“”`*_]{{0,4}}\s{{0,9}}{_VALUE}\s{{0,9}}["'“”`*_]{{0,4}}\s{{0,99}}
    (?=,?\s*\}}|,\s*["'“”A-Za-z]|(?:```)?\s*\Z)""",
    re.IGNORECASE | re.VERBOSE,
)
"""A score in an object with errors. What follows it is the object's end or another key: not so in "0, 0.5 or 1"."""
_LINE = re.compile(
    rf"""^[\s\#*_`•+-]{{0,20}}(?:\d{{1,2}}[.)]\s+)?[*_`]{{0,4}}(?:(?:my|the|final|overall|total)\s+){{0,3}}
    (?:score|verdict)[\s*_`"'”]{{0,6}}(?:[:=：]|\bis\b)[\s*_`"'“(\[]{{0,8}}{_VALUE}[*_`"'”)\]]{{0,6}}
    (?=[.;]?\s*$|\s*\(|\s+[–—-]\s|[,;]\s*[A-Za-z])""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
"""A score at the beginning of a line."""
_MENTION = re.compile(rf"\b(?:score|verdict)\b[^\n{{}}]{{0,40}}?{_VALUE}", re.IGNORECASE)
"""A score anywhere in prose."""
_REST = re.compile(rf"""["']score["']\s{{0,9}}:\s{{0,9}}["']?{_VALUE}["']?\s{{0,9}}\}}""", re.IGNORECASE)
"""The end of an object that has errors, left over from the part that looked like a whole one."""
_KEY = re.compile(r"""["'“”`*_]{0,4}\bscore["'“”`*_]{0,4}\s*[:=：]""", re.IGNORECASE)
_INSIDE = re.compile(r"""\s*["”}]""")
"""What follows an object that stands inside another one, which has errors."""
_EXAMPLE = re.compile(r"\s*(?:<.*>|\.{2,}|…|one short sentence|explanation)\s*\.?", re.IGNORECASE)
"""An explanation that is no explanation: the form of a reply, shown before it is filled in."""
_TAG = re.compile(rf"<score>\s*{_VALUE}\s*</score>", re.IGNORECASE)
_TEXT = re.compile(rf"\s*{_VALUE}\s*(?:\(.*\)\s*)?", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"\s*(?:```\w*\s*)?(?=\{)")
_LONGEST = 2_000
"""Characters of an object with errors."""
_BRACE = re.compile(r"[{}]")
_PARAGRAPH = re.compile(r"\n\s*\n")


class Verdict(NamedTuple):
    """A verdict that ends at ``end`` in a reply. ``score`` is None where it is no score that can be given.

    One that stands in quotation marks counts only where no other does.
    """

    end: int
    score: float | None
    quoted: bool = False


def parse_verdict(text: str, *, cut: bool = False, answer: str = "") -> float:
    """The score of a judge's reply: that of its last complete verdict. ``answer`` is the judged answer.

    Of a reply that the token limit has ``cut`` only a whole JSON object at its beginning is taken: anything else may be
    a thought, or half a number. Raises UnreadableReplyError where there is no verdict, or where the last one is not 0,
    0.5 or 1 (a 10, a NaN, a true): such a reply is asked again and counted, and never taken for a 0.
    """
    quoted = _squeezed(answer)
    verdicts = _first_object(text, quoted) if cut else _verdicts(text[-MAX_CHARS:], quoted)
    last = max(verdicts, key=lambda verdict: (not verdict.quoted, verdict.end), default=None)
    if last is None and cut:
        raise UnreadableReplyError(f"the reply was cut by the token limit before its verdict; {ADVICE}")
    if last is None or last.score is None:
        raise UnreadableReplyError(f'expected JSON with "score" 0, 0.5 or 1, not {text.strip()[:80]!r}')
    return last.score


def _squeezed(text: str) -> str:
    """``text`` without white space, in small letters, for comparing quotations."""
    return "".join(text.split()).lower()


def _is_quotation(text: str, quoted: str) -> bool:
    return bool(quoted) and _squeezed(text) in quoted


def _first_object(text: str, quoted: str) -> Iterator[Verdict]:
    """The verdict of the object that a reply begins with, unless it only shows the form."""
    opening = _FENCE.match(text)
    found = _decode(text, opening.end()) if opening else None
    if not opening or not found or _is_quotation(text[opening.end() : found[1]], quoted):
        return
    if not _EXAMPLE.fullmatch(str(found[0].get("explanation", ""))):
        yield from _of_object(text, opening.end(), *found)


def _verdicts(text: str, quoted: str) -> Iterator[Verdict]:
    """All verdicts that are not in the judged answer (``quoted``): of JSON objects, of objects with
    errors, and of lines outside of both.

    Prose behind them all that speaks of another score makes the reply one that cannot be read.
    """
    prose = list(text)
    verdicts: list[Verdict] = []
    at = 0
    while (at := text.find("{", at)) >= 0:
        if found := _decode(text, at):
            value, end = found
            found_here = list(_of_object(text, at, value, end))
        else:
            end = _end_of_broken(text, at)
            found_here = list(_of_broken(text, at, end))
        if not _is_quotation(text[at:end], quoted):
            verdicts += found_here
        prose[at:end] = " " * (end - at)
        at = end
    rest = "".join(prose)
    for form in (_LINE, _TAG, _REST):
        stated = (found for found in form.finditer(rest) if not _is_quotation(found[0], quoted))
        verdicts += [Verdict(found.end(), _number(found)) for found in stated]
    last = max((verdict for verdict in verdicts if not verdict.quoted), default=None)
    if last is not None:
        mentions = _MENTION.finditer(rest, last.end)
        later = [_number(found) for found in mentions if not _is_quotation(found[0], quoted)]
        verdicts += [Verdict(len(text), None)] * any(score != last.score for score in later)
    yield from verdicts


def _decode(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON object that begins at ``at`` and where it ends; None if it has an error."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _of_object(text: str, start: int, value: Any, end: int) -> Iterator[Verdict]:
    """The verdict of a sound object: its own score, else that of the last object inside it.

    One that stands inside another with errors has none that can be given.
    """
    for inner in _objects(value):
        keys = [key for key in inner if key.strip(" *_`").lower() in ("score", "final_score", "final score")]
        if keys:
            score = None if _INSIDE.match(text, end) else _score(inner[keys[-1]])
            yield Verdict(end, score, text[max(0, start - 1) : start] in tuple("`\"'“‘"))
            return


def _objects(value: Any, depth: int = 5) -> Iterator[dict[str, Any]]:
    """``value`` and the objects in it, outermost first, later ones before earlier ones."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list) and depth:
        for inner in reversed(list(value.values()) if isinstance(value, dict) else value):
            yield from _objects(inner, depth - 1)


def _of_broken(text: str, start: int, end: int) -> Iterator[Verdict]:
    """The verdict of an object with errors; of one with two different scores it is none that can be given."""
    scores = {_number(found) for found in _KEYED.finditer(text[start:end])}
    if scores or _KEY.search(text, start, end):
        yield Verdict(end, scores.pop() if len(scores) == 1 else None)


def _end_of_broken(text: str, start: int) -> int:
    """Where an object with errors ends: at the brace that balances its first one, else with its paragraph."""
    depth = 0
    for brace in _BRACE.finditer(text, start, start + _LONGEST):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.end()
    paragraph = _PARAGRAPH.search(text, start)
    return paragraph.start() if paragraph else len(text)


def _score(value: Any) -> float | None:
    """A score as JSON has it: a number, or a text with one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        return _number(found) if found else None
    return float(value) if value in SCORES else None


def _number(found: re.Match[str]) -> float | None:
    """0, 0.5 or 1, perhaps "of 1"; None of any other number."""
    most = found["most"]
    if most is not None and float(most.replace(",", ".")) != 1:
        return None
    value = float(found["value"].replace(",", "."))
    return abs(value) if value in SCORES else None
