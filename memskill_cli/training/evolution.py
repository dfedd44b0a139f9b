"""Stages, snapshots and rollback: the outer loop in which the designer evolves the bank (section 7 of the method).

A stage that earns more than every one before it becomes the best, and the next change is made from it. A stage that
does not is rolled back: bank, statistics and hard cases are the best stage's again, and the change joins the attempts
that the designer is shown as tried without help. So does a cycle that changed nothing, with its reason: asked the same
question again, a model at temperature 0 would give the same answer. No change is made that no training will judge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from memskill_cli.agent.designer import Designer, FailedEdit, Proposal, apply
from memskill_cli.agent.designer_context import MAX_CHARS
from memskill_cli.agent.hard_cases import HardCasePool, select
from memskill_cli.config import Config, DesignerConfig
from memskill_cli.datasets.registry import get
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.models import is_embedded
from memskill_cli.memory.encoders import CachedEncoder
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.stages import Stage

EMBEDDED_CHARS = 8000
"""Characters of cases shown to the embedded model, whose window holds 8192 tokens in all."""


def designer_of(llm: LLMClient, settings: Config) -> Designer:
    """The designer of a run, shown no more than its model can read."""
    max_chars = EMBEDDED_CHARS if is_embedded(settings.models.designer) else MAX_CHARS
    return Designer(llm, settings.designer, get(settings.dataset).prompt_style, max_chars=max_chars)


class Evolution:
    """The lineage of one run in its ``stages/`` folder; every decision is read from there, so it survives a crash."""

    def __init__(self, folder: Path, config: DesignerConfig, notice: Callable[[str], None]) -> None:
        self.folder, self.config, self.notice = folder, config, notice

    def begin(self, bank: SkillBank) -> None:
        """Stage 0, unless the run has it."""
        if not stages.path_of(self.folder, 0).exists():
            stages.write(self.folder, Stage(0, bank))

    def close(self, bank: SkillBank, rewards: Sequence[float], checkpoint: int) -> Stage:
        """Judge the stage that ``bank`` is of by its inner-epoch ``rewards``; it is kept if it beats all before it."""
        known = stages.read_all(self.folder)
        opened = next((stage for stage in known if stage.number == bank.stage), Stage(bank.stage, bank))
        closed = dataclasses.replace(
            opened,
            bank=bank.copy(),
            reward=stages.stage_reward(rewards, self.config.judged_share),
            checkpoint=checkpoint,
        )
        before = [stage for stage in known if stage.number < bank.stage]
        wins = stages.mark_best([*before, closed])[-1].is_best
        closed = dataclasses.replace(closed, is_best=wins, kept=wins)
        self._replace(known, [*before, closed, *(stage for stage in known if stage.number > bank.stage)])
        return closed

    def truncate_after(self, done: int, bank: SkillBank) -> None:
        """Back to what was known after ``done`` inner epochs, when the bank was ``bank``.

        A stage judged later is open again; those proposed after such a one go, and are proposed anew (the replies are
        in the cache). What a crash between two files left marked twice is marked once. Nothing changes if all of it was
        known.
        """
        known = stages.read_all(self.folder)
        later = [stage.number for stage in known if stage.checkpoint is not None and stage.checkpoint > done]
        if later:
            told = ", ".join(map(str, later))
            self.notice(f"stages judged after inner epoch {done} are judged again: {told}")
        end = min((number for number in later if number > bank.stage), default=math.inf)
        for stage in reversed(known):  # from the end, so that a crash leaves none whose parent has gone
            if stage.number >= end:
                stages.path_of(self.folder, stage.number).unlink()
        kept = [stage for stage in known if stage.number < end]
        open_again = {stage.number: _reopened(stage, bank) for stage in kept if stage.number in later}
        self._replace(kept, [open_again.get(stage.number, stage) for stage in kept])

    def _replace(self, known: Sequence[Stage], wanted: Sequence[Stage]) -> None:
        """Write those of ``wanted`` that are not ``known``, the latest first, with one of all marked as the best."""
        for stage in reversed(stages.mark_best(wanted)):
            if stage not in known:
                stages.write(self.folder, stage)

    def repeat_stage(self, bank: SkillBank) -> Stage:
        """The next stage of a run without a designer: the same bank, judged anew."""
        number = max((stage.number for stage in stages.read_all(self.folder)), default=-1) + 1
        again = bank.copy()
        again.stage = number
        stage = Stage(number, again, parent=bank.stage)
        stages.write(self.folder, stage)
        return stage

    def stop_reason(self) -> str:
        """Why no further cycle is worth it, "" if one is."""
        judged = [stage for stage in stages.read_all(self.folder) if stage.reward is not None]
        champion = stages.best(judged)
        without = sum(stage.number > champion.number for stage in judged) if champion else 0
        if without >= self.config.patience:
            return f"no better stage in {without} cycles"
        return "the most cycles have been made" if len(judged) > self.config.max_cycles else ""

    async def propose(
        self,
        designer: Designer,
        bank: SkillBank,
        pool: HardCasePool,
        encoder: CachedEncoder,
        seed: int,
        *,
        write: bool = True,
    ) -> Stage:
        """One designer cycle on ``bank`` and its hard cases: the next stage, written and waiting to be judged."""
        known = stages.read_all(self.folder)
        number = max((stage.number for stage in known), default=-1) + 1
        cases = pool.cases
        vectors = await encoder.aencode([case.question for case in cases], "query")
        clusters = select(cases, vectors, self.config, seed) if cases else []
        if clusters:
            proposal = await designer.propose(bank, clusters, attempts(known))
        else:
            proposal = Proposal("no hard cases, so nothing to change", (), {})
        stage = stage_of(bank, proposal, number)
        if write:
            stages.write(self.folder, stage)
        for reason in proposal.refused:
            self.notice(f"the designer's proposal was refused: {reason}")
        names = ", ".join(f"{change.kind} {change.name}" for change in proposal.changes) or "no change"
        self.notice(f"stage {number}, from stage {bank.stage} and {len(cases)} hard cases: {names}; {proposal.summary}")
        return stage


def _reopened(stage: Stage, bank: SkillBank) -> Stage:
    """``stage`` before it was judged; its bank is ``bank``, if that is the one being trained."""
    bank = bank.copy() if bank.stage == stage.number else stage.bank
    return Stage(stage.number, bank, change=stage.change, rationale=stage.rationale, parent=stage.parent)


def stage_of(bank: SkillBank, proposal: Proposal, number: int) -> Stage:
    """The stage that ``proposal`` makes of ``bank``."""
    changed = apply(bank, proposal, number)
    if not proposal.changes:
        why = "; ".join(filter(None, (proposal.summary, *proposal.refused))) or "no reason was given"
        return Stage(number, changed, rationale=why, parent=bank.stage)
    why = "\n".join(f"{change.kind} {change.name}: {change.why}" for change in proposal.changes if change.why)
    return Stage(number, changed, change=proposal.to_dict(), rationale=why, parent=bank.stage)


def attempts(known: Sequence[Stage]) -> list[FailedEdit]:
    """Changes that were judged and rolled back, and cycles that came to none, oldest first.

    Only since the best stage: a new best clears the list, since what failed beside other skills may help beside these.
    """
    champion = stages.best(known)
    found = []
    for stage in known:
        if champion is not None and stage.number <= champion.number:
            continue
        if not stage.change and stage.rationale:
            found.append(FailedEdit(stage.number, stage.rationale, (), None, None))
        elif stage.kept is False:
            before = [s.reward for s in known if s.number < stage.number and s.reward is not None]
            summary, changes = stage.change.get("summary", ""), tuple(stage.change.get("changes", ()))
            found.append(FailedEdit(stage.number, summary, changes, stage.reward, max(before, default=None)))
    return found
