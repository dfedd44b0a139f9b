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
from typing import Any, TypeVar

from memskill_cli.agent.designer_context import (
    MAX_CHARS,
    Style,
    describe_attempts,
    describe_bodies,
    describe_cases,
    describe_skills,
)
from memskill_cli.agent.designer_parsing import Refinement, parse_analysis, parse_refinement
from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.agent.prompts import messages, template
from memskill_cli.agent.skill_edits import Attempt, Change, make, review
from memskill_cli.config import DesignerConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.client import Gateway
from memskill_cli.skills.bank import SkillBank

__all__ = ["Attempt", "Change", "Designer", "Proposal", "Style", "apply"]

T = TypeVar("T")


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
    """Proposes changes of a skill bank. ``max_chars`` bounds what is shown, for models with a small window."""

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
        evidence = {
            "skills": describe_skills(bank),
            "attempts": describe_attempts(attempts, self._max_chars // 4),
            "cases": describe_cases(clusters, self._style, self._config.retrieved, self._max_chars),
        }
        cycle = _Cycle(self._gateway, self._config, f"designer_{self._style}", evidence)
        analysis = await cycle.analyse(sum(map(len, clusters)))
        if analysis is None:
            return Proposal("No analysis could be read.", refused=tuple(cycle.refused))
        if {pattern["cause"] for pattern in analysis["patterns"]} == {"retrieval"}:
            cycle.refused.append("every failure is one of retrieval, which no change of skills would cure")
            return Proposal(analysis["summary"], (), analysis, tuple(cycle.refused))
        bodies = describe_bodies(bank, analysis, self._max_chars // 2)
        summary, changes = await cycle.refine(bank, analysis, bodies)
        return Proposal(summary or analysis["summary"], tuple(changes), analysis, tuple(cycle.refused))


class _Cycle:
    """The calls of one designer cycle. ``refused`` grows with everything that was not accepted."""

    def __init__(self, gateway: Gateway, config: DesignerConfig, system: str, evidence: dict[str, str]) -> None:
        self._gateway, self._config, self._system, self._evidence = gateway, config, system, evidence
        self.refused: list[str] = []

    async def analyse(self, cases: int) -> dict[str, Any] | None:
        """The analysis after its reflections, None if none could be read.

        A reflection that changes nothing is the last one; after one that can't be read the analysis stays as it was.
        """
        parse = partial(parse_analysis, cases=cases)
        faults: list[str] = []
        analysis = None
        while analysis is None and len(faults) < self._config.tries:
            analysis = await self._ask(parse, faults, task=self._task("designer_analyse"))
        for _ in range(self._config.rounds - 1 if analysis else 0):
            before = analysis
            parts = {"analysis": _to_json(before), "task": self._task("designer_reflect")}
            analysis = await self._ask(parse, [], **parts) or before
            if analysis == before:
                break
        return analysis

    def _task(self, name: str) -> str:
        hint = "\n\n" + template("designer_prefer_new") if self._config.prefer_new_skills else ""
        return template(name) + hint

    async def refine(self, bank: SkillBank, analysis: dict[str, Any], bodies: str) -> tuple[str, list[Change]]:
        """Summary and changes of the first reply with something to accept, or with an empty list."""
        most = self._config.max_changes
        limit = "1 change" if most == 1 else f"{most} changes"
        if self._config.refine_only:
            limit += ', each of them "refine": no skill may be added'
        parts = {"analysis": _to_json(analysis), "bodies": bodies, "limit": limit, "task": template("designer_refine")}
        faults: list[str] = []
        summary = ""
        for left in reversed(range(self._config.tries)):
            reply = await self._ask(parse_refinement, faults, **parts)
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
        changes, wrong = review(bank, reply.changes, refine_only=self._config.refine_only)
        most = self._config.max_changes
        if len(changes) <= most:
            return changes, wrong
        wrong.append(f"{len(changes)} changes, at most {most} allowed: keep only the most valuable")
        return (changes[:most] if last else []), wrong

    async def _ask(self, parse: Callable[..., T], faults: list[str], **parts: str) -> T | None:
        """A reply as parsed, None if it can't be read. ``faults`` are those of earlier tries; this one's are added."""
        told = "Your earlier replies were refused:\n" + "\n".join(faults) + "\nReply anew, without these faults."
        prompt = messages(self._system, **self._evidence, **parts, refused=told if faults else "")
        try:
            return (await self._gateway.ask("designer", prompt, parse=lambda text: parse(text, cut=text.cut))).value
        except UnreadableReplyError as error:
            self._refuse([error.message], faults)
            return None

    def _refuse(self, wrong: Sequence[str], faults: list[str]) -> None:
        """Tell the next try what was wrong with this one; numbered, so that the same fault twice is another prompt."""
        self.refused += wrong
        if wrong:
            faults.append(f"- reply {len(faults) + 1}: {'; '.join(wrong)}")


def _to_json(analysis: dict[str, Any] | None) -> str:
    return json.dumps(analysis, ensure_ascii=False)
