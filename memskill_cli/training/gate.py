"""The gate of ``designer.gate = "val"``: held-out questions decide whether a change of the skill bank is kept.

The champion (the best stage's bank with the controller of its checkpoint) and the challenger (the bank and the
controller at the end of the new stage) answer the same questions of the val split. The change is kept only if the mean
paired difference is positive and its 95 % interval excludes a loss of ``designer.gate_margin`` (held_out.py).

Scores are kept in the files of the stages, and those of a challenger first in its last checkpoint. So a resumed run
decides as an undisturbed one, also if old checkpoints are damaged or deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.distributed.base import Engine
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.runs import checkpoint
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.stages import Gate, Scores, Stage
from memskill_cli.training.held_out import HeldOut


@dataclasses.dataclass(frozen=True)
class ValGate:
    """Answers the held-out questions of a run, and compares its stages by them. Without ``held_out`` it does nothing.

    ``folder`` has the stages, ``checkpoints`` the checkpoints of the run.
    """

    held_out: HeldOut | None
    folder: Path
    checkpoints: Path
    engine: Engine
    encoders: EncoderPair
    notice: Callable[[str], None]

    async def measure_champion(self, number: int, current: Controller, num_updates: int) -> None:
        """Answer the questions with the best stage before stage ``number``, unless its file has their scores.

        The trainer does this before the first inner epoch of stage ``number``, while the champion's checkpoint exists.
        ``current`` is the controller after ``num_updates`` inner epochs.
        """
        champion = stages.best_before(self.folder, number)
        if self.held_out is None or champion is None or self.held_out.has_measured(champion):
            return
        is_current = champion.checkpoint in (None, num_updates)
        controller = current if is_current else self._controller_of(champion, current)
        scores = await self._scores(self.held_out, controller, champion.bank)
        stages.write(self.folder, dataclasses.replace(champion, held_out=scores))

    async def measure_challenger(self, bank: SkillBank, controller: Controller, num_updates: int) -> Scores | None:
        """At the end of the stage of ``bank``: its scores of the questions; None if they do not judge it."""
        stage = self._stage(bank.stage)
        if self.held_out is None or stage is None or not stage.change:
            return None
        await self.measure_champion(stage.number, controller, num_updates)
        return await self._scores(self.held_out, controller, bank)

    def decision(self, bank: SkillBank, scores: Scores | None) -> Gate | None:
        """The decision about the stage of ``bank``, which has ``scores``; None if the questions do not judge it."""
        champion = stages.best_before(self.folder, bank.stage)
        if self.held_out is None or scores is None or champion is None or champion.held_out is None:
            return None
        return self.held_out.decide(champion.held_out, scores)

    def describe_loss(self, number: int) -> str:
        """The reason why stage ``number`` is rolled back."""
        stage = self._stage(number)
        return f"is not better ({stage.gate.describe()})" if stage and stage.gate else "has no higher reward"

    def _stage(self, number: int) -> Stage | None:
        return next((stage for stage in stages.read_all(self.folder) if stage.number == number), None)

    async def _scores(self, held_out: HeldOut, controller: Controller, bank: SkillBank) -> Scores:
        descriptions = [skill.description for skill in bank.skills]
        skills_SD = torch.from_numpy(await self.encoders.of_skills.aencode(descriptions))
        return await held_out.scores(self.engine, controller, bank, skills_SD)

    def _controller_of(self, champion: Stage, current: Controller) -> Controller:
        """The controller of a stage's checkpoint; if that is damaged, of the one before it, or else ``current``."""
        found = checkpoint.load_latest(self.checkpoints, self.notice, upto=champion.checkpoint)
        if found is None or found.num_updates != champion.checkpoint:
            instead = f"that of inner epoch {found.num_updates}" if found else "the current one"
            self.notice(f"checkpoint {champion.checkpoint:06d} cannot be used: the controller is {instead}")
        if found is None:
            return current
        controller = Controller(2 * found.state["dim"], found.skill_dim, found.state["hidden"])
        controller.load_state_dict(found.controller)
        return controller
