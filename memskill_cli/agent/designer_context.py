"""Text of the designer's prompt: skills, attempts and hard cases, shortened to the model's context window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.agent.prompts import numbered
from memskill_cli.agent.skill_edits import FailedEdit, SkillEdit
from memskill_cli.skills.bank import SkillBank

Style = Literal["conversational", "embodied"]

MAX_CHARS = 60_000
"""Most characters of all cases, about 15,000 tokens; in addition half of it for bodies and a quarter for attempts."""
_DETAIL = ((20, 600), (12, 400), (8, 300), (5, 200), (3, 150), (1, 120))
"""(memories per case, characters per text), most detailed first. The first that fits is used."""
_ATTEMPT_CHARS = 600  # most characters of each text of an attempt
_WORDING = {
    "conversational": ("Question", "Truth", "Prediction"),
    "embodied": ("Goal", "Wanted", "How it went"),
}

_EVIDENCE = {
    "not_stored": "was not stored in memory",
    "lost": "was stored, then overwritten or deleted",
    "not_retrieved": "was stored, not retrieved",
    "not_used": "was retrieved, not used in the answer",
}
"""What the designer is told of a case's evidence, by the stage at which it was lost."""


def describe_skills(bank: SkillBank) -> str:
    """One line per skill: name, action type and description."""
    lines = ((skill, " ".join(skill.description.splitlines())) for skill in bank.skills)
    return "\n".join(f"- {skill.name} (action: {skill.action}): {description}" for skill, description in lines)


def describe_bodies(bank: SkillBank, analysis: dict[str, Any], max_chars: int) -> str:
    """Skill bodies, recommended skills first; a last line names the skills whose body does not fit."""
    wanted = {recommendation["skill"] for recommendation in analysis["recommendations"]}
    skills = sorted(bank.skills, key=lambda skill: skill.name not in wanted)
    blocks = [f"### {skill.name}\nAction type: {skill.action.value.upper()}\n{skill.body}" for skill in skills]
    shown = _fitting(blocks, max_chars)
    rest = ", ".join(skill.name for skill in skills[len(shown) :])
    return "\n\n".join([*shown, f"Not shown, so leave these bodies alone: {rest}"] if rest else shown)


def describe_attempts(attempts: Sequence[FailedEdit], max_chars: int) -> str:
    """Failed edits and cycles without a change, oldest first. If not all fit, the oldest are left out."""
    shown = _fitting(map(_attempt, reversed(attempts)), max_chars)
    return "\n\n".join(reversed(shown))


def describe_cases(clusters: Sequence[Sequence[HardCase]], style: Style, memories: int, max_chars: int) -> str:
    """All cases, numbered from 1, with at most ``memories`` retrieved memories each; less detail if not all fit."""
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
    category = _truncate(case.category, 80) or "none"
    times = "once" if case.fail_count == 1 else f"{case.fail_count} times"
    lines = [
        f"Case {number} (category {category}, failed {times}, last score {case.score:.2f})",
        f"{question}: {_truncate(case.question, length)}",
        f"{truth}: {_truncate(' / '.join(case.gold_answers), length)}",
        f"{prediction}: {_truncate(case.prediction, length) or '(nothing)'}",
        *([f"Evidence: {_EVIDENCE[case.stage]}"] if case.stage in _EVIDENCE else []),
        "Memories retrieved, nearest first:",
        numbered(_truncate(text, length) for text in case.retrieved[:memories]),
    ]
    return "\n".join(lines)


def _attempt(attempt: FailedEdit) -> str:
    if not attempt.changes:
        return f"Stage {attempt.stage}, nothing was changed: {_truncate(attempt.summary, _ATTEMPT_CHARS)}"
    best = "" if attempt.best is None else f", the best without it {attempt.best:.4f}"
    earned = "" if attempt.reward is None else f" (reward {attempt.reward:.4f}{best})"
    earned = f" ({attempt.measured})" if attempt.measured else earned
    lines = [f"Stage {attempt.stage}, tried, did not help{earned}: {_truncate(attempt.summary, _ATTEMPT_CHARS)}"]
    for change in map(SkillEdit.from_dict, attempt.changes):
        lines.append(f"- {change.kind} {change.name}: {_truncate(change.why, _ATTEMPT_CHARS)}")
        tried = {"description": change.description, "body": change.body}
        lines += [f"  {key}: {_truncate(text, _ATTEMPT_CHARS)}" for key, text in tried.items() if text is not None]
    return "\n".join(lines)


def _fitting(texts: Iterable[str], max_chars: int) -> list[str]:
    """The first ``texts`` with at most ``max_chars`` characters in total."""
    kept: list[str] = []
    for text in texts:
        max_chars -= len(text)
        if max_chars < 0:
            break
        kept.append(text)
    return kept


def _truncate(text: str, length: int) -> str:
    """``text`` on one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
