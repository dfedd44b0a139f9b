"""The designer: a frozen LLM that reads hard cases and rewords skills or proposes new ones (section 7 of the method).

One cycle is an analysis, reflections that improve it, and a refinement. All its prompts begin alike (system message,
skills, attempts, cases), so that a provider's prefix caching pays; what differs comes last. What is refused is told to
the model before it is asked again, so no prompt is sent twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from memskill_cli.agent.designer_changes import Change, make, review
from memskill_cli.agent.designer_reply import Refinement, parse_analysis, parse_refinement
from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.agent.prompts import Message, messages, numbered, template
from memskill_cli.config import DesignerConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.gateway import Gateway
from memskill_cli.skills.bank import SkillBank

__all__ = ["Attempt", "Change", "Designer", "Proposal", "apply"]

Style = Literal["conversational", "embodied"]
T = TypeVar("T")

MAX_CHARS = 60_000
"""Characters of all cases together; about 15,000 tokens."""
_DETAIL = ((20, 600), (12, 400), (8, 300), (5, 200), (3, 150), (1, 120))
"""Memories of a case and characters of a text, from rich to poor: the first that fits is shown."""
_ATTEMPTS = 10  # latest attempts that are shown
_TRIED = 600  # characters of a tried body that are shown
_WORDING = {
    "conversational": ("Question", "Truth", "Prediction"),
    "embodied": ("Goal", "Wanted", "How it went"),
}


@dataclass(frozen=True)
class Attempt:
    """Changes that training has judged and rolled back: ``reward`` of their stage against the ``best`` before."""

    stage: int
    summary: str
    changes: tuple[dict[str, Any], ...]  # as Change.to_dict
    reward: float | None
    best: float | None


@dataclass(frozen=True)
class Proposal:
    """What a cycle came to. ``analysis`` is the last one, ``refused`` what was not accepted on the way, and why."""

    summary: str
    changes: tuple[Change, ...] = ()
    analysis: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "summary": self.summary,
            "changes": [change.to_dict() for change in self.changes],
            "analysis": self.analysis,
            "refused": list(self.refused),
        }


def apply(bank: SkillBank, proposal: Proposal, stage: int) -> SkillBank:
    """A copy of ``bank`` that belongs to ``stage``, with the proposal's changes made and their skills marked as new.

    A full bank gives up skills as :meth:`SkillBank.add` says. Raises SkillBankError if a change does not fit the bank.
    """
    return make(bank, proposal.changes, stage)


class Designer:
    """Proposes changes of a skill bank. ``max_chars`` bounds the cases shown, for models with a small window."""

    def __init__(
        self, gateway: Gateway, config: DesignerConfig, style: Style = "conversational", *, max_chars: int = MAX_CHARS
    ) -> None:
        self._gateway, self._config, self._style, self._max_chars = gateway, config, style, max_chars

    async def propose(
        self, bank: SkillBank, clusters: Sequence[Sequence[HardCase]], attempts: Sequence[Attempt]
    ) -> Proposal:
        """One cycle: at most ``config.max_changes`` changes that fit ``bank``, or none.

        None come of: no cases; an analysis that finds nothing but retrieval failures; an empty list; replies that
        are refused as often as ``config.tries`` allows. Raises ModelError when a call itself fails.
        """
        if not any(clusters):
            return Proposal("There are no hard cases.")
        cycle = _Cycle(self._gateway, self._config, self._evidence(bank, clusters, attempts), f"designer_{self._style}")
        analysis = await cycle.analyse(sum(map(len, clusters)))
        if analysis is None:
            return Proposal("No analysis could be read.", refused=tuple(cycle.refused))
        causes = {pattern["cause"] for pattern in analysis["patterns"]}
        if causes == {"retrieval"}:
            cycle.refused.append("every failure is one of retrieval, which no change of skills would cure")
            return Proposal(analysis["summary"], (), analysis, tuple(cycle.refused))
        summary, changes = await cycle.refine(bank, analysis)
        return Proposal(summary or analysis["summary"], tuple(changes), analysis, tuple(cycle.refused))

    def _evidence(
        self, bank: SkillBank, clusters: Sequence[Sequence[HardCase]], attempts: Sequence[Attempt]
    ) -> dict[str, str]:
        """The parts that all prompts of a cycle begin with."""
        for memories, length in _DETAIL:
            cases = _describe_cases(clusters, self._style, min(memories, self._config.retrieved), length)
            if len(cases) <= self._max_chars:
                break
        return {
            "skills": "\n".join(f"- {s.name} (action: {s.action}): {s.description}" for s in bank.skills),
            "attempts": "\n\n".join(map(_describe_attempt, attempts[-_ATTEMPTS:])),
            "cases": cases,
        }


class _Cycle:
    """The calls of one designer cycle. ``refused`` grows with everything that was not accepted."""

    def __init__(self, gateway: Gateway, config: DesignerConfig, evidence: dict[str, str], system: str) -> None:
        self._gateway, self._config, self._evidence, self._system = gateway, config, evidence, system
        self.refused: list[str] = []

    async def analyse(self, cases: int) -> dict[str, Any] | None:
        """The analysis after its reflections, None if none could be read.

        A reflection that changes nothing is the last one; after one that can't be read the analysis stays as it was.
        """
        parse = partial(parse_analysis, cases=cases)
        faults: list[str] = []
        analysis = None
        while analysis is None and len(faults) < self._config.tries:
            analysis = await self._ask(parse, faults, task=template("designer_analyse"))
        for _ in range(self._config.rounds - 1):
            before = analysis
            if before is None:
                break
            task = {"analysis": _to_json(before), "task": template("designer_reflect")}
            analysis = await self._ask(parse, [], **task) or before
            if analysis == before:
                break
        return analysis

    async def refine(self, bank: SkillBank, analysis: dict[str, Any]) -> tuple[str, list[Change]]:
        """Summary and changes of the first reply with something to accept, or with an empty list."""
        faults: list[str] = []
        summary = ""
        for left in reversed(range(self._config.tries)):
            parts = {"analysis": _to_json(analysis), "bodies": _describe_bodies(bank), "limit": self._limit()}
            reply = await self._ask(parse_refinement, faults, **parts, task=template("designer_refine"))
            if reply is None:
                continue
            summary = reply.summary
            changes, wrong = self._accept(bank, reply, last=not left)
            self._refuse(wrong, faults)
            if changes or not reply.changes:
                return summary, changes
        return summary, []

    def _accept(self, bank: SkillBank, reply: Refinement, last: bool) -> tuple[list[Change], list[str]]:
        """What to make of a reply. Too many changes are all sent back, but of a last reply the first ones stand."""
        changes, wrong = review(bank, reply.changes)
        most = self._config.max_changes
        if len(changes) <= most:
            return changes, wrong
        wrong.append(f"{len(changes)} changes, at most {most} allowed: keep only the most valuable")
        return (changes[:most] if last else []), wrong

    async def _ask(self, parse: Callable[[str], T], faults: list[str], **parts: str) -> T | None:
        """A reply as parsed, None if it can't be read. ``faults`` are those of earlier tries; this one's are added."""
        told = "Your earlier replies were refused:\n" + "\n".join(faults) + "\nReply anew, without these faults."
        prompt: list[Message] = messages(self._system, **self._evidence, **parts, refused=told if faults else "")
        try:
            return (await self._gateway.ask("designer", prompt, parse=parse)).value
        except UnreadableReplyError as error:
            self._refuse([error.message], faults)
            return None

    def _refuse(self, wrong: Sequence[str], faults: list[str]) -> None:
        """Tell the next try what was wrong with this one; numbered, so that the same fault twice is another prompt."""
        self.refused += wrong
        if wrong:
            faults.append(f"- reply {len(faults) + 1}: {'; '.join(wrong)}")

    def _limit(self) -> str:
        most = self._config.max_changes
        return "1 change" if most == 1 else f"{most} changes"


def _describe_cases(clusters: Sequence[Sequence[HardCase]], style: Style, memories: int, length: int) -> str:
    blocks, number = [], 0
    for group, cases in enumerate(filter(None, clusters), start=1):
        blocks.append(f"Group {group}")
        for case in cases:
            number += 1
            blocks.append(_describe_case(number, case, style, memories, length))
    return "\n\n".join(blocks)


def _describe_case(number: int, case: HardCase, style: Style, memories: int, length: int) -> str:
    question, truth, prediction = _WORDING[style]
    times = "once" if case.fails == 1 else f"{case.fails} times"
    lines = [
        f"Case {number} (category {case.category or 'none'}, failed {times}, last score {case.score:.2f})",
        f"{question}: {_cut(case.question, length)}",
        f"{truth}: {_cut(' / '.join(case.truths), length)}",
        f"{prediction}: {_cut(case.prediction, length) or '(nothing)'}",
        "Memories retrieved, nearest first:",
        numbered(_cut(text, length) for text in case.retrieved[:memories]),
    ]
    return "\n".join(lines)


def _describe_attempt(attempt: Attempt) -> str:
    """An attempt as the designer is told of it: what was tried, and that it did not help."""
    earned = "" if attempt.reward is None else f" (reward {attempt.reward:.4f}"
    if earned:
        earned += ")" if attempt.best is None else f", the best without it {attempt.best:.4f})"
    lines = [f"Stage {attempt.stage}, tried, did not help{earned}: {_cut(attempt.summary, _TRIED)}"]
    for change in map(Change.from_dict, attempt.changes):
        lines.append(f"- {change.kind} {change.name}: {_cut(change.why, _TRIED)}")
        tried = {"description": change.description, "body": change.body}
        lines += [f"  {key}: {_cut(text, _TRIED)}" for key, text in tried.items() if text is not None]
    return "\n".join(lines)


def _describe_bodies(bank: SkillBank) -> str:
    return "\n\n".join(
        f"### {skill.name}\nAction type: {skill.action.value.upper()}\n{skill.body}" for skill in bank.skills
    )


def _to_json(analysis: dict[str, Any]) -> str:
    return json.dumps(analysis, ensure_ascii=False)


def _cut(text: str, length: int) -> str:
    """``text`` in one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
