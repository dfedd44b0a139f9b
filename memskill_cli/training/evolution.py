"""Stages, snapshots and rollback: the outer loop in which the designer evolves the bank (section 7 of the method).

A stage with a higher reward than all stages before it becomes the best, and the designer's next change is made to its
bank. With ``designer.gate = "val"``, held-out questions decide about a change instead (gate.py). Any other stage is
rolled back: bank, statistics and hard cases become those of the best stage again, and the change is added to the list
of changes that did not help, which the designer is shown. A cycle without a change is in that list too, with its
reason, because a model at temperature 0 would give the same reply to the same prompt. No change is made after which
there is no training that could judge it.
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
from memskill_cli.skills.stages import Gate, Scores, Stage

EMBEDDED_CHARS = 8000
"""Maximum characters of hard cases shown to the embedded model, which has a context window of 8192 tokens."""


def designer_of(llm: LLMClient, settings: Config) -> Designer:
    """The designer of a run, with a limit for the hard cases that its model is shown."""
    max_chars = EMBEDDED_CHARS if is_embedded(settings.models.designer) else MAX_CHARS
    return Designer(llm, settings.designer, get(settings.dataset).prompt_style, max_chars=max_chars)


class Evolution:
    """The stages of one run. All decisions are made from the files in its ``stages/`` folder, also after a crash."""

    def __init__(self, folder: Path, config: DesignerConfig, notice: Callable[[str], None]) -> None:
        self.folder, self.config, self.notice = folder, config, notice

    def begin(self, bank: SkillBank) -> None:
        """Write stage 0 if the run does not have it yet."""
        if not stages.path_of(self.folder, 0).exists():
            stages.write(self.folder, Stage(0, bank))

    def close(
        self,
        bank: SkillBank,
        rewards: Sequence[float],
        checkpoint: int,
        *,
        gate: Gate | None = None,
        held_out: Scores | None = None,
    ) -> Stage:
        """Judge the stage of ``bank``: by ``gate`` if there is one, else by its inner-epoch ``rewards``.

        By rewards, it is kept if it is better than all before it. ``held_out`` are its scores of held-out questions.
        """
        known = stages.read_all(self.folder)
        opened = next((stage for stage in known if stage.number == bank.stage), Stage(bank.stage, bank))
        closed = dataclasses.replace(
            opened,
            bank=bank.copy(),
            reward=stages.stage_reward(rewards, self.config.judged_share),
            checkpoint=checkpoint,
            gate=gate,
            held_out=held_out,
            opened=opened.opened if opened.judged else opened.bank,
        )
        before = [stage for stage in known if stage.number < bank.stage]
        wins = stages.mark_best([*before, closed])[-1].is_best
        closed = dataclasses.replace(closed, is_best=wins, kept=wins)
        self._replace(known, [*before, closed, *(stage for stage in known if stage.number > bank.stage)])
        return closed

    def truncate_after(self, done: int, bank: SkillBank) -> None:
        """Go back to the stages as they were after ``done`` inner epochs, when the bank was ``bank``.

        A stage that was judged later becomes unjudged. Stages that were proposed after such a stage are deleted and
        proposed again (the replies are in the cache). If a crash has left two stages marked as the best, one mark is
        removed. If no stage was judged later, nothing else changes.
        """
        known = stages.read_all(self.folder)
        later = [stage.number for stage in known if stage.checkpoint is not None and stage.checkpoint > done]
        if later:
            told = ", ".join(map(str, later))
            self.notice(f"stages judged after inner epoch {done} are judged again: {told}")
        end = min((number for number in later if number > bank.stage), default=math.inf)
        for stage in reversed(known):  # from the end, so that after a crash every stage still has its parent
            if stage.number >= end:
                stages.path_of(self.folder, stage.number).unlink()
        kept = [stage for stage in known if stage.number < end]
        open_again = {stage.number: _reopened(stage, bank) for stage in kept if stage.number in later}
        self._replace(kept, [open_again.get(stage.number, stage) for stage in kept])

    def _replace(self, known: Sequence[Stage], wanted: Sequence[Stage]) -> None:
        """Write the stages of ``wanted`` that differ from ``known``, the latest first. One is marked as the best."""
        for stage in reversed(stages.mark_best(wanted)):
            if stage not in known:
                stages.write(self.folder, stage)

    def repeat_stage(self, bank: SkillBank) -> Stage:
        """The next stage of a run without a designer: the same bank, which is judged again."""
        number = max((stage.number for stage in stages.read_all(self.folder)), default=-1) + 1
        again = bank.copy()
        again.stage = number
        stage = Stage(number, again, parent=bank.stage)
        stages.write(self.folder, stage)
        return stage

    def stop_reason(self) -> str:
        """The reason to make no further designer cycle; "" if there is none."""
        judged = [stage for stage in stages.read_all(self.folder) if stage.reward is not None]
        champion = stages.best(judged)
        without = sum(stage.number > champion.number for stage in judged) if champion else 0
        if without >= self.config.patience:
            return f"no better stage in {without} designer cycles"
        return (
            f"the limit of {self.config.max_cycles} designer cycles is reached"
            if len(judged) > self.config.max_cycles
            else ""
        )

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
        """One designer cycle on ``bank`` and its hard cases. Returns the next stage, which is not judged yet."""
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
    """``stage`` as it was before it was judged.

    A file of an earlier version does not have the opened bank. Then it is ``bank`` if that is the bank of this stage.
    """
    opened = stage.opened or (bank.copy() if bank.stage == stage.number else stage.bank)
    return Stage(stage.number, opened, change=stage.change, rationale=stage.rationale, parent=stage.parent)


def stage_of(bank: SkillBank, proposal: Proposal, number: int) -> Stage:
    """Stage ``number``: ``bank`` with the changes of ``proposal``."""
    changed = apply(bank, proposal, number)
    if not proposal.changes:
        why = "; ".join(filter(None, (proposal.summary, *proposal.refused))) or "no reason was given"
        return Stage(number, changed, rationale=why, parent=bank.stage)
    why = "\n".join(f"{change.kind} {change.name}: {change.why}" for change in proposal.changes if change.why)
    return Stage(number, changed, change=proposal.to_dict(), rationale=why, parent=bank.stage)


def attempts(known: Sequence[Stage]) -> list[FailedEdit]:
    """Changes that were judged and rolled back, and cycles without a change, oldest first.

    Only those since the best stage: a change that did not help with other skills may help with the skills of the new
    best stage.
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
            measured = stage.gate.describe() if stage.gate else ""
            found.append(FailedEdit(stage.number, summary, changes, stage.reward, max(before, default=None), measured))
    return found
