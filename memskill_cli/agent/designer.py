"""The designer: a frozen LLM reads hard cases and refines or adds skills (section 7 of docs/method.md).

One cycle is an analysis, reflections that improve it, and a refinement. All prompts of a cycle share a prefix (system
message, skills, attempts, cases), so that prefix caching of the provider works; the different parts come last. After a
refused reply the next prompt lists the reasons, so no prompt is sent twice.
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
from memskill_cli.agent.skill_edits import FailedEdit, SkillEdit, apply_edits, validate_edits
from memskill_cli.config import DesignerConfig
from memskill_cli.errors import RejectedPromptError, UnreadableReplyError
from memskill_cli.llm.client import LLMClient
from memskill_cli.skills.bank import SkillBank

__all__ = ["Designer", "FailedEdit", "Proposal", "SkillEdit", "Style", "apply"]

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """The result of a designer cycle. ``analysis`` is the last one; ``refused`` are the reasons of all refusals."""

    summary: str
    changes: tuple[SkillEdit, ...] = ()
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
    """A copy of ``bank`` for ``stage`` with the changes of the proposal; changed skills are marked as new.

    If the bank is full, :meth:`SkillBank.add` evicts skills. Raises SkillBankError if a change does not fit the bank.
    """
    return apply_edits(bank, proposal.changes, stage)


class Designer:
    """Proposes changes of a skill bank. ``max_chars`` limits the prompt for models with a small context window."""

    def __init__(
        self, llm: LLMClient, config: DesignerConfig, style: Style = "conversational", *, max_chars: int = MAX_CHARS
    ) -> None:
        self._llm, self._config, self._style, self._max_chars = llm, config, style, max_chars

    async def propose(
        self, bank: SkillBank, clusters: Sequence[Sequence[HardCase]], attempts: Sequence[FailedEdit]
    ) -> Proposal:
        """Run one cycle: at most ``config.max_changes`` changes that fit ``bank``.

        There are no changes if there are no cases, if all failures are retrieval failures, if the model returns an
        empty list, or if ``config.max_attempts`` replies were refused. Raises ModelError if a call fails.
        """
        if not any(clusters):
            return Proposal("There are no hard cases.")
        context = {
            "skills": describe_skills(bank),
            "attempts": describe_attempts(attempts, self._max_chars // 4),
            "cases": describe_cases(clusters, self._style, self._config.memories_per_case, self._max_chars),
        }
        cycle = _Cycle(self._llm, self._config, f"designer_{self._style}", context)
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
    """The model calls of one designer cycle. ``refused`` collects the reasons of all refusals."""

    def __init__(self, llm: LLMClient, config: DesignerConfig, system: str, context: dict[str, str]) -> None:
        self._llm, self._config, self._system, self._context = llm, config, system, context
        self.refused: list[str] = []

    async def analyse(self, cases: int) -> dict[str, Any] | None:
        """The analysis after its reflections; None if no analysis could be read.

        Reflection stops when it changes nothing, or when a reply can't be read; then the analysis before it is kept.
        """
        parse = partial(parse_analysis, cases=cases)
        faults: list[str] = []
        analysis = None
        while analysis is None and len(faults) < self._config.max_attempts:
            analysis = await self._ask(parse, faults, task=self._task("designer_analyse"))
        for _ in range(self._config.reflection_rounds - 1 if analysis else 0):
            before = analysis
            parts = {"analysis": _to_json(before), "task": self._task("designer_reflect")}
            analysis = await self._ask(parse, [], **parts) or before
            if analysis == before:
                break
        return analysis

    def _task(self, name: str) -> str:
        hint = "\n\n" + template("designer_prefer_new") if self._config.prefer_new_skills else ""
        return template(name) + hint

    async def refine(self, bank: SkillBank, analysis: dict[str, Any], bodies: str) -> tuple[str, list[SkillEdit]]:
        """Summary and changes of the first reply with an acceptable change, or with an empty list."""
        max_changes = self._config.max_changes
        limit = "1 change" if max_changes == 1 else f"{max_changes} changes"
        if self._config.refine_only:
            limit += ', each of them "refine": no skill may be added'
        parts = {"analysis": _to_json(analysis), "bodies": bodies, "limit": limit, "task": template("designer_refine")}
        faults: list[str] = []
        summary = ""
        for attempts_left in reversed(range(self._config.max_attempts)):
            reply = await self._ask(parse_refinement, faults, **parts)
            if reply is None:
                continue
            summary = reply.summary
            changes, wrong = self._accept(bank, reply, last=not attempts_left)
            self._record_refusals(wrong, faults)
            if changes or not reply.changes:
                return summary, changes
        return summary, []

    def _accept(self, bank: SkillBank, reply: Refinement, last: bool) -> tuple[list[SkillEdit], list[str]]:
        """The accepted changes of a reply, and the reasons of refusals.

        Too many changes are all refused, except in the ``last`` reply: its first ``max_changes`` are accepted.
        """
        changes, wrong = validate_edits(bank, reply.changes, refine_only=self._config.refine_only)
        max_changes = self._config.max_changes
        if len(changes) <= max_changes:
            return changes, wrong
        wrong.append(f"{len(changes)} changes, at most {max_changes} allowed: keep only the most valuable")
        return (changes[:max_changes] if last else []), wrong

    async def _ask(self, parse: Callable[..., T], faults: list[str], **parts: str) -> T | None:
        """The parsed reply; None if it can't be read, and then the reason is appended to ``faults``."""
        feedback = "Your earlier replies were refused:\n" + "\n".join(faults) + "\nReply anew, without these faults."
        prompt = messages(self._system, **self._context, **parts, refused=feedback if faults else "")
        try:
            return (await self._llm.ask("designer", prompt, parse=lambda text: parse(text, cut=text.cut))).value
        except (UnreadableReplyError, RejectedPromptError) as error:
            self._record_refusals([error.message], faults)
            return None

    def _record_refusals(self, wrong: Sequence[str], faults: list[str]) -> None:
        """Add the reasons ``wrong`` to ``faults`` for the next prompt, numbered so that no two prompts are equal."""
        self.refused += wrong
        if wrong:
            faults.append(f"- reply {len(faults) + 1}: {'; '.join(wrong)}")


def _to_json(analysis: dict[str, Any] | None) -> str:
    return json.dumps(analysis, ensure_ascii=False)
