"""Memory written by an executor with skills: the method itself, and three simpler ways to choose the skills."""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch

from memskill_cli.agent.answerer import recall_from
from memskill_cli.agent.controller import ChooseSkills, choose
from memskill_cli.agent.executor import executor_messages
from memskill_cli.datasets.spans import count_tokens
from memskill_cli.evaluation.counts import executor_counts
from memskill_cli.evaluation.methods.base import CONTROLLER, WINDOW, Memory, Method, Uses
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.rollout.episode import read
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Choice, Span, Trace, Vector
from memskill_cli.utils.seeding import seed_from

SKILLS_SHARE = 0.5
"""Part of the executor's window that :class:`AllSkills` may fill; memories, span and reply need the rest."""


class Written(Method):
    """One executor call a span; a trace's bank is kept when all of it is read, and taken up again after that."""

    ignores = WINDOW

    @abstractmethod
    def chooser(self, trace: Trace) -> ChooseSkills:
        """How skills are chosen for the spans of ``trace``; called once for each in reading order."""

    async def remember(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> Memory:
        stored = await self.site.keeper.read_bank(trace.trace_id)
        bank = MemoryBank(trace.trace_id) if stored is None else MemoryBank.of(stored)
        recall = recall_from(bank, self.site.world.spaces, self.site.settings.memory.top_k)
        if stored is not None:
            for _ in spans:
                advance()
            return Memory(recall, len(bank))
        skills, world = self.site.subject.bank, self.site.world
        steps = await read(world, spans, skills, self.chooser(trace), bank, advance, evaluating=True)
        counts = {"executor": executor_counts(steps)}
        keep = partial(self.site.keeper.write_bank, trace.trace_id)
        return Memory(recall, len(bank), counts=counts, keep=lambda: keep(bank.stored()))


class MemSkill(Written):
    """The controller's plain top-K of the run's skills."""

    uses: ClassVar[Uses] = "controller"
    _choose: ChooseSkills

    async def open(self) -> None:
        settings, subject = self.site.settings, self.site.subject
        descriptions = [skill.description for skill in subject.bank.skills]
        skills_SD = torch.from_numpy(await self.site.world.spaces.of_skills.aencode(descriptions))
        controller = subject.controller(settings, self.site.world.spaces.state.dim, skills_SD.shape[1])
        self._choose = partial(choose, controller, skills_SD=skills_SD, k=settings.eval.top_k)

    def chooser(self, trace: Trace) -> ChooseSkills:
        return self._choose


class SeedSkills(MemSkill):
    """The seed skills and an untrained controller, whatever the run has learned.

    With the published K all seeds are chosen for every span, so that the controller only decides their order.
    """

    uses: ClassVar[Uses] = "seeds"


class RandomSkills(Written):
    """K of the run's skills, drawn anew for each span from (seed, trace, span): at another concurrency the same."""

    uses: ClassVar[Uses] = "skills"
    ignores = WINDOW | (CONTROLLER - {"eval.top_k", "encoders.state"})

    def chooser(self, trace: Trace) -> ChooseSkills:
        count, numbers = len(self.site.subject.bank), itertools.count()

        def draw(state: Vector) -> Choice:
            seed = seed_from(self.site.settings.seed, "random-skills", trace.trace_id, next(numbers))
            k = min(self.site.settings.eval.top_k, count)
            return Choice(tuple(random.Random(seed).sample(range(count), k)), 0.0, 0.0)  # noqa: S311 - not for secrets

        return draw


class AllSkills(Written):
    """Every skill of the run in each call, in name order; the last ones stay out when they would fill the window."""

    uses: ClassVar[Uses] = "skills"
    ignores = WINDOW | (CONTROLLER - {"encoders.state"})

    @cached_property
    def _fitting(self) -> int:
        """How many skills are shown."""
        skills, window = self.site.subject.bank.skills, self.site.world.gateway.window("executor")
        sizes = [_prompt_tokens(skills[: i + 1]) for i in range(len(skills))]
        return sum(window is None or size <= SKILLS_SHARE * window for size in sizes)

    def chooser(self, trace: Trace) -> ChooseSkills:
        choice = Choice(tuple(range(self._fitting)), 0.0, 0.0)
        return lambda state: choice

    def facts(self) -> dict[str, Any]:
        return {"skills_shown": self._fitting, "skills": len(self.site.subject.bank)}


def _prompt_tokens(skills: Sequence[Skill]) -> int:
    return sum(count_tokens(m["content"]) for m in executor_messages(Span("", 0, ""), (), skills))
