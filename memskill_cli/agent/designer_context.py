"""What the designer is shown: skills, attempts and hard cases as text, cut to what a model's window can take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.agent.prompts import numbered
from memskill_cli.agent.skill_edits import Attempt, Change
from memskill_cli.skills.bank import SkillBank

Style = Literal["conversational", "embodied"]

MAX_CHARS = 60_000
"""Characters of all cases together, about 15,000 tokens; bodies may have half of that besides, attempts a quarter."""
_DETAIL = ((20, 600), (12, 400), (8, 300), (5, 200), (3, 150), (1, 120))
"""Memories of a case and characters of a text, from rich to poor: the first that fits is shown."""
_TRIED = 600  # characters shown of each text of an attempt
_WORDING = {
    "conversational": ("Question", "Truth", "Prediction"),
    "embodied": ("Goal", "Wanted", "How it went"),
}


def describe_skills(bank: SkillBank) -> str:
    """Names, actions and descriptions, a line each."""
    lines = ((skill, " ".join(skill.description.splitlines())) for skill in bank.skills)
    return "\n".join(f"- {skill.name} (action: {skill.action}): {description}" for skill, description in lines)


def describe_bodies(bank: SkillBank, analysis: dict[str, Any], max_chars: int) -> str:
    """Bodies, those of recommended skills first if not all fit; the skills whose body is left out are named."""
    wanted = {recommendation["skill"] for recommendation in analysis["recommendations"]}
    skills = sorted(bank.skills, key=lambda skill: skill.name not in wanted)
    blocks = [f"### {skill.name}\nAction type: {skill.action.value.upper()}\n{skill.body}" for skill in skills]
    shown = _fitting(blocks, max_chars)
    rest = ", ".join(skill.name for skill in skills[len(shown) :])
    return "\n\n".join([*shown, f"Not shown, so leave these bodies alone: {rest}"] if rest else shown)


def describe_attempts(attempts: Sequence[Attempt], max_chars: int) -> str:
    """What was tried without help and cycles without a change, oldest first; the oldest are left out if not all fit."""
    shown = _fitting(map(_attempt, reversed(attempts)), max_chars)
    return "\n\n".join(reversed(shown))


def describe_cases(clusters: Sequence[Sequence[HardCase]], style: Style, memories: int, max_chars: int) -> str:
    """All cases, numbered from 1, with at most ``memories`` retrieved each; the more there are, the shorter each is."""
    text = ""
    for most, length in _DETAIL:
        text = _cases(clusters, style, min(most, memories), length)
        if len(text) <= max_chars:
            break
    return text


def _cases(clusters: Sequence[Sequence[HardCase]], style: Style, memories: int, length: int) -> str:
    blocks, number = [], 0
    for group, cases in enumerate(filter(None, clusters), start=1):
        blocks.append(f"Group {group}")
        for case in cases:
            number += 1
            blocks.append(_case(number, case, style, memories, length))
    return "\n\n".join(blocks)


def _case(number: int, case: HardCase, style: Style, memories: int, length: int) -> str:
    question, truth, prediction = _WORDING[style]
    times = "once" if case.fails == 1 else f"{case.fails} times"
    lines = [
        f"Case {number} (category {_cut(case.category, 80) or 'none'}, failed {times}, last score {case.score:.2f})",
        f"{question}: {_cut(case.question, length)}",
        f"{truth}: {_cut(' / '.join(case.truths), length)}",
        f"{prediction}: {_cut(case.prediction, length) or '(nothing)'}",
        "Memories retrieved, nearest first:",
        numbered(_cut(text, length) for text in case.retrieved[:memories]),
    ]
    return "\n".join(lines)


def _attempt(attempt: Attempt) -> str:
    if not attempt.changes:
        return f"Stage {attempt.stage}, nothing was changed: {_cut(attempt.summary, _TRIED)}"
    best = "" if attempt.best is None else f", the best without it {attempt.best:.4f}"
    earned = "" if attempt.reward is None else f" (reward {attempt.reward:.4f}{best})"
    lines = [f"Stage {attempt.stage}, tried, did not help{earned}: {_cut(attempt.summary, _TRIED)}"]
    for change in map(Change.from_dict, attempt.changes):
        lines.append(f"- {change.kind} {change.name}: {_cut(change.why, _TRIED)}")
        tried = {"description": change.description, "body": change.body}
        lines += [f"  {key}: {_cut(text, _TRIED)}" for key, text in tried.items() if text is not None]
    return "\n".join(lines)


def _fitting(texts: Iterable[str], max_chars: int) -> list[str]:
    """The first of ``texts``, as many as fit."""
    kept: list[str] = []
    for text in texts:
        max_chars -= len(text)
        if max_chars < 0:
            break
        kept.append(text)
    return kept


def _cut(text: str, length: int) -> str:
    """``text`` in one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
