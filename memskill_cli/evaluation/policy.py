"""The part of a run that is evaluated: its skills, and the controller that selects from them."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from memskill_cli.agent.controller import Controller, SelectSkills, select_skills
from memskill_cli.config import Config, digest
from memskill_cli.errors import CheckpointError
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank


@dataclasses.dataclass(frozen=True)
class EvaluatedPolicy:
    """A skill bank, and the checkpoint of the controller that selects from it."""

    bank: SkillBank
    found: Checkpoint | None
    checkpoint: str
    """"untrained"; "none" if no controller is used; or the number of inner epochs the controller was trained for."""
    digest: str

    @classmethod
    def of(cls, found: Checkpoint | None, settings: Config, bank: SkillBank | None = None) -> EvaluatedPolicy:
        """The controller of a checkpoint with its bank (or another ``bank``). If ``found`` is None: an untrained
        controller with the seed skills (or ``bank``)."""
        if found is not None:
            bank = bank or found.bank
            return cls(bank, found, f"{found.num_updates:06d}", digest([found.digest, bank.digest()]))
        bank = bank or seed_bank(noop=settings.controller.include_noop)
        parts = ["untrained", settings.controller.hidden, settings.seed, bank.digest()]
        return cls(bank, None, "untrained", digest(parts))

    @classmethod
    def nothing(cls) -> EvaluatedPolicy:
        """For methods without skills."""
        return cls(SkillBank(), None, "none", "")

    def skills_only(self) -> EvaluatedPolicy:
        """The same skills without their controller."""
        return EvaluatedPolicy(self.bank, None, "none", self.bank.digest())

    def controller(self, settings: Config, dim: int, skill_dim: int) -> Controller:
        """The controller for ``dim``-d embeddings (``skill_dim``-d of skills). CheckpointError if they differ."""
        if self.found is None:
            return Controller.seeded(dim, settings.controller.hidden, settings.seed, skill_dim=skill_dim)
        if (self.found.state["dim"], self.found.skill_dim) != (dim, skill_dim):
            raise CheckpointError(
                f"the controller was trained on {self.found.state['dim']}-d embeddings ({self.found.skill_dim}-d of "
                f"skills), but {settings.encoders.state} has {dim} dimensions ({skill_dim} for skills)",
                hint="evaluate with the --encoder of the training",
            )
        controller = Controller.seeded(dim, self.found.state["hidden"], settings.seed, skill_dim=skill_dim)
        controller.load_state_dict(self.found.controller)
        return controller

    async def chooser(self, settings: Config, encoders: EncoderPair) -> SelectSkills:
        """The controller's top-K skills for a state, without sampling."""
        descriptions = [skill.description for skill in self.bank.skills]
        skills_SD = torch.from_numpy(await encoders.of_skills.aencode(descriptions))
        controller = self.controller(settings, encoders.state.dim, skills_SD.shape[1])
        return partial(select_skills, controller, skills_SD=skills_SD, k=settings.eval.num_skills)
